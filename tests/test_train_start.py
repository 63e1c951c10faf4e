"""Where training starts: checkpoints, larger images, other vocabularies, random numbers; and the checks before the first step."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from conftest import shared
from transformers import AutoProcessor, AutoTokenizer, TrOCRProcessor

from trocr_jax import pretrained
from trocr_jax.model import TrOCR
from trocr_jax.network.encoder import Encoder
from trocr_jax.tokens import Tokenizer, character_vocabulary
from trocr_jax.train import preflight, vocabulary
from trocr_jax.train.batches import Batch
from trocr_jax.train.config import StartConfig
from trocr_jax.train.parameters import build, named
from trocr_jax.train.start import (
    POSITIONS,
    opened,
    random_parameters,
    sinusoids,
    start,
    trimming,
    with_image_size,
    with_tokenizer,
)
from trocr_jax.train.start import _characters as characters
from trocr_jax.train.step import StepConfig, new_state


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opened(tiny.model_directory(tmp_path_factory.mktemp("start") / "model"))


def pixels(config, rows=2):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (rows, *config.encoder.image_size, 3)).astype(np.float32))


def test_random_kernels_keep_the_size_of_their_input():
    parameters = random_parameters(tiny.MODEL, 0)
    assert parameters.keys() == named(TrOCR.abstract(tiny.MODEL)).keys()
    fc2 = np.asarray(parameters["encoder.layers.mlp.fc2.kernel"])
    assert fc2.std() == pytest.approx(32**-0.5, rel=0.1) and not np.array_equal(fc2[0], fc2[1])
    assert not np.asarray(parameters["encoder.layers.mlp.fc2.bias"]).any()


def test_continued_positions_are_the_trained_ones_and_then_sinusoids(model):
    trained = {**model.parameters, POSITIONS: model.parameters[POSITIONS] + 1.0}
    wide = with_image_size(replace(model, parameters=trained), (16, 80), "continue")
    table = np.asarray(wide.parameters[POSITIONS])
    assert table.shape == (11, 16) and wide.processor.width == 80
    assert b'"width": 80' in wide.companions["preprocessor_config.json"]
    np.testing.assert_array_equal(table[:7], np.asarray(trained[POSITIONS]))
    np.testing.assert_array_equal(table[7:], sinusoids(wide.config.encoder)[7:])
    np.testing.assert_array_equal(sinusoids(wide.config.encoder)[:7], sinusoids(model.config.encoder))


def test_a_model_says_whether_it_was_trained_without_empty_columns(model):
    assert not model.processor.trimmed and trimming(model, False) is model
    trimmed = trimming(model, True)
    assert trimmed.processor.trimmed and b'"trimmed": true' in trimmed.companions["preprocessor_config.json"]
    assert b"trimmed" not in trimming(trimmed, False).companions["preprocessor_config.json"]


def test_interpolated_positions_are_what_the_encoder_would_interpolate(model):
    wide = with_image_size(model, (16, 80), "interpolate")
    expected = Encoder.positions(build(model.config, model.parameters).encoder, (16, 80))
    np.testing.assert_allclose(np.asarray(wide.parameters[POSITIONS]), np.asarray(expected), atol=1e-6)
    with pytest.raises(ValueError, match="no multiple of patch_size"):
        with_image_size(model, (16, 83), "interpolate")


def test_extending_a_byte_level_vocabulary_keeps_every_old_token(model):
    old = model.tokenizer
    assert len(old.labels("ż")) == 3 and len(old.labels("é")) == 2
    grown = with_tokenizer(model, vocabulary.extended(old, "éżあ"), 0)
    assert len(grown.tokenizer.labels("ż")) == 2 and grown.tokenizer.decode(grown.tokenizer.labels("aż あé")) == "aż あé"
    assert old.vocabulary.keys() <= grown.tokenizer.vocabulary.keys()
    assert grown.config.decoder.vocab_size == grown.tokenizer.size == grown.parameters[vocabulary.EMBEDDING].shape[0]
    before, after = (np.asarray(s.parameters[vocabulary.EMBEDDING]) for s in (model, grown))
    for token, index in old.vocabulary.items():
        np.testing.assert_array_equal(after[grown.tokenizer.vocabulary[token]], before[index])
    parts = [before[i] for i in old.labels("ż")[:-1]]
    np.testing.assert_allclose(after[grown.tokenizer.labels("ż")[0]], np.mean(parts, axis=0), atol=1e-7)


def test_an_extended_model_reads_what_it_read_before(model):
    """The logits of old tokens are untouched, wherever the tokens have moved to."""
    grown = with_tokenizer(model, vocabulary.extended(model.tokenizer, "ż"), 0)

    def logits(found):
        ids = jnp.asarray([[found.config.decoder_start_token_id, *found.tokenizer.labels("12")[:-1]]], jnp.int32)
        return np.asarray(jax.jit(TrOCR.__call__)(build(found.config, found.parameters), pixels(found.config, 1), ids))

    old, new = logits(model), logits(grown)
    places = [grown.tokenizer.vocabulary[token] for token in model.tokenizer.vocabulary]
    np.testing.assert_allclose(new[..., places], old[..., list(model.tokenizer.vocabulary.values())], atol=1e-5)


def test_another_vocabulary_changes_ids_and_nothing_else_about_decoding(model):
    """A model that starts at <s> and searches with beams does so with more characters, too; <mask> moves, 999 is no token."""
    settings = {"num_beams": 4, "no_repeat_ngram_size": 3, "forced_bos_token_id": None, "decoder_start_token_id": 0}
    mask, old = model.tokenizer.vocabulary["<mask>"], model.tokenizer
    ids = {"eos_token_id": [2, mask], "bad_words_ids": [[mask]], "suppress_tokens": [999]}
    found = replace(
        model,
        config=replace(model.config, decoder_start_token_id=old.bos_token_id),
        companions={**model.companions, "generation_config.json": json.dumps({**settings, **ids}).encode()},
    )
    for tokenizer in (vocabulary.extended(old, "ż"), character_vocabulary("éż")):
        other, moved = with_tokenizer(found, tokenizer, 0), tokenizer.vocabulary["<mask>"]
        assert other.config.decoder_start_token_id == tokenizer.bos_token_id
        written = json.loads(other.companions["generation_config.json"])
        assert written == {**settings, "eos_token_id": [2, moved], "bad_words_ids": [[moved]]}
    assert moved == mask + 1
    with pytest.raises(ValueError, match="^generation_config.json is not valid json$"):
        with_tokenizer(replace(found, companions={"generation_config.json": b"["}), tokenizer, 0)


def test_transformers_prepares_images_of_the_new_size(model, tmp_path):
    """Its version 5 looks into processor_config.json first, where it saves everything."""
    both = {"processor_class": "TrOCRProcessor", "image_processor": model.processor.to_hf()}
    kept = {name: content for name, content in model.companions.items() if name != "preprocessor_config.json"}
    found = replace(model, companions={**kept, "processor_config.json": json.dumps(both).encode()})
    wide = with_image_size(found, (16, 80), "interpolate")
    pretrained.save(build(wide.config, wide.parameters), tmp_path / "wide", wide.companions)
    for kind in (TrOCRProcessor, AutoProcessor):
        pixels = kind.from_pretrained(tmp_path / "wide")(images=tiny.draw("12"), return_tensors="np").pixel_values
        assert pixels.shape == (1, 3, 16, 80), kind


def test_bytes_become_characters_without_changing_others():
    """가 takes two more tokens: of the choices for the first, the one that fewer other characters have."""
    old = Tokenizer.from_directory(shared("tokenizer", "roberta"))
    new = vocabulary.extended(old, "가")
    written = [chr(i) for i in range(0x80, 0xD800)]
    changed = [c for c in written if old.labels(c) != new.labels(c)]
    assert new.size == old.size + 2 and "가" in changed and len(changed) < 15


def test_every_added_character_is_one_token_alone_and_behind_a_space():
    """Merges of RoBERTa's take the last bytes of 사 and 성, and the space with the first of 나."""
    added = "사성킬나жꙮ☃😀"
    new = vocabulary.extended(Tokenizer.from_directory(shared("tokenizer", "roberta")), added)
    for character in added:
        for text in (character, " " + character, f"x{character}y {character}"):
            tokens = [new.decode([i]) for i in new.labels(text)[:-1]]
            assert "".join(tokens) == text and "\ufffd" not in tokens


def test_a_part_of_a_character_starts_as_the_mean_of_its_own_parts(model):
    new = vocabulary.extended(model.tokenizer, "あ")
    old = np.asarray(model.parameters[vocabulary.EMBEDDING])
    rows = np.asarray(vocabulary.resized(model.parameters, model.tokenizer, new, 0)[vocabulary.EMBEDDING])
    first, *_ = new.vocabulary.keys() - model.tokenizer.vocabulary.keys() - {"ãģĤ"}
    parts = [old[model.tokenizer.vocabulary[symbol]] for symbol in first]
    assert len(parts) == 2
    np.testing.assert_allclose(rows[new.vocabulary[first]], np.mean(parts, axis=0), atol=1e-7)


@pytest.mark.parametrize("name", ["roberta", "trocr-small"])
@pytest.mark.parametrize("saved", ["added_tokens_decoder", "added_tokens.json"])
def test_vocabularies_with_added_tokens_grow_too(name, saved, tmp_path):
    """transformers saves the ids of such tokens, which stand behind the vocabulary's own."""
    plain = Tokenizer.from_directory(shared("tokenizer", name))
    ids = {token: plain.vocabulary[token] for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")} | {"<line>": plain.size}
    config = json.loads(plain.files["tokenizer_config.json"])
    config["added_tokens_decoder"] = {index: {"content": token, "special": token != "<line>"} for token, index in ids.items()}
    changed = {"tokenizer_config.json": config} if saved == "added_tokens_decoder" else {saved: {"<line>": plain.size}}
    old = Tokenizer({**plain.files, **{file: json.dumps(content).encode() for file, content in changed.items()}})
    new = vocabulary.extended(old, "ꙮᚠ")
    assert len(set(new.vocabulary.values())) == len(new.vocabulary) == new.size and old.vocabulary.keys() < new.vocabulary.keys()
    assert new.decode(new.labels("xꙮᚠy")) == "xꙮᚠy" and new.decode([new.vocabulary["<line>"]]) == "<line>"
    new.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("xꙮ<line>y ᚠ", add_special_tokens=False).input_ids == new.labels("xꙮ<line>y ᚠ")[:-1]


def test_an_untied_head_is_resized_with_the_embeddings():
    config = replace(tiny.MODEL, decoder=replace(tiny.MODEL.decoder, tie_word_embeddings=False))
    parameters = random_parameters(config, 0)
    new = character_vocabulary("éż")
    out = vocabulary.resized(parameters, tiny.TOKENIZER, new, 0)
    assert out[vocabulary.HEAD].shape == (16, new.size) and out[vocabulary.EMBEDDING].shape == (new.size, 16)
    for token, index in tiny.TOKENIZER.vocabulary.items():
        column = np.asarray(out[vocabulary.HEAD])[:, new.vocabulary[token]]
        np.testing.assert_array_equal(column, np.asarray(parameters[vocabulary.HEAD])[:, index])


def test_the_small_models_vocabulary_grows_too():
    tokenizer = Tokenizer.from_directory(shared("tokenizer", "trocr-small"))
    grown = vocabulary.extended(tokenizer, "ꙮᚠ")
    assert grown.size == tokenizer.size + 2
    for character in "ꙮᚠ":
        label = grown.labels(f"x{character}y")
        assert grown.unk_token_id not in label and grown.decode(label) == f"x{character}y"
    sample = "Total RM 9.00, thank you"
    assert [grown.decode([i]) for i in grown.labels(sample)] == [tokenizer.decode([i]) for i in tokenizer.labels(sample)]


def test_a_character_that_the_tokenizer_replaces_is_refused():
    with pytest.raises(ValueError, match="this tokenizer replaces ⓐ by other characters"):
        vocabulary.extended(Tokenizer.from_directory(shared("tokenizer", "trocr-small")), "ⓐꙮ")


def test_a_foreign_tokenizer_moves_rows_by_token(tmp_path, model):
    foreign = character_vocabulary("äöü")
    foreign.save(tmp_path / "tokenizer")
    found = start(StartConfig(model="scratch", tokenizer=str(tmp_path / "tokenizer")), 0)
    assert found.tokenizer.vocabulary == foreign.vocabulary and found.config.decoder.vocab_size == foreign.size
    with pytest.raises(ValueError, match="has a token for each"):
        vocabulary.extended(foreign, "äa")


def test_wrong_starts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no architecture 'huge'; known: tiny-print"):
        start(StartConfig(model="scratch", architecture="huge"), 0)
    with pytest.raises(ValueError, match="no such file or directory"):
        start(StartConfig(model=str(tmp_path / "nowhere")), 0)


def test_a_step_that_would_train_nothing_is_refused(model):
    with pytest.raises(ValueError, match="StepConfig.trained has none of the model's parameters, such as decoder"):
        new_state(StepConfig(model.config, frozenset({"decoder"})), model.parameters, {}, optax.sgd(1.0), 0)


# --- checks before the first step ---


def test_ids_that_do_not_belong_together_are_found(model):
    assert "token ids agree" in preflight.token_ids(model.config, model.tokenizer)
    with pytest.raises(preflight.Failed, match="pad_token_id is 5 in the model and 1"):
        preflight.token_ids(replace(model.config, pad_token_id=5), model.tokenizer)
    small = replace(model.config, decoder=replace(model.config.decoder, vocab_size=100))
    with pytest.raises(preflight.Failed, match="and the model 100 rows"):
        preflight.token_ids(small, model.tokenizer)


def test_weights_that_are_no_numbers_are_named(model):
    broken = {**model.parameters, "encoder.norm.scale": model.parameters["encoder.norm.scale"] * np.nan}
    with pytest.raises(preflight.Failed, match="damaged, these hold NaN or infinity: encoder.norm.scale$"):
        preflight.finite_numbers(broken)


def test_a_start_model_with_fewer_rows_than_tokens_is_refused(model):
    tokenizer = Tokenizer.from_directory(shared("tokenizer", "roberta"))
    with pytest.raises(ValueError, match=f"its own tokenizer has {tokenizer.size} tokens: they do not belong together"):
        with_tokenizer(replace(model, tokenizer=tokenizer), model.tokenizer, 0)


def test_characters_come_as_they_are_or_in_a_file(tmp_path):
    (tmp_path / "new.txt").write_text("√ é\n", encoding="utf-8-sig")
    (tmp_path / "old.txt").write_bytes(b"\xe9")
    assert [characters(text) for text in ("~√", "√" * 999, str(tmp_path / "new.txt"))] == ["~√", "√" * 999, "√é"]
    with pytest.raises(ValueError, match="old.txt: not a text in UTF-8"):
        characters(str(tmp_path / "old.txt"))


def test_labels_that_the_tokenizer_changes_are_named():
    tokenizer = Tokenizer.from_directory(shared("tokenizer", "trocr-small"))
    assert "10 labels come back unchanged" in preflight.round_trips(tokenizer, [*(f"plain {i}" for i in range(10)), "plain 1"])
    with pytest.raises(preflight.Failed, match="such as 'ⓧ 5' to.*characters lost: ⓧ"):
        preflight.round_trips(tokenizer, ["ⓧ 5", "plain"])


def test_labels_with_accents_apart_from_their_letters_are_told():
    assert preflight.composed(["Zürich", "1"]) == "letters and accents of all labels are composed (NFC)"
    assert preflight.composed(["Zu\u0308rich", "Zu\u0308rich", "1"]).startswith("1 of 2 labels have their accents apart")


def test_generation_and_teacher_forcing_are_compared(model, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 48, 3), np.uint8)
    config = StepConfig(model.config, frozenset())
    assert "agree on" in preflight.agreement(build(model.config, model.parameters), images, config, 12)
    real = preflight._teacher_forced
    monkeypatch.setattr(preflight, "_teacher_forced", lambda m, x, tokens, *rest: real(m, x[::-1], tokens, *rest))
    with pytest.raises(preflight.Failed, match="disagree by"):
        preflight.agreement(build(model.config, model.parameters), images, config, 12)


def test_learning_by_heart_passes_on_lines_and_fails_on_noise(model):
    config = StepConfig(replace(model.config, decoder=replace(model.config.decoder, dropout=0.0)), frozenset(model.parameters))
    texts = ["1", "22", "345", "7"]
    labels = np.full((4, 8), 1, np.int32)
    for row, text in zip(labels, texts, strict=True):
        label = model.tokenizer.labels(text)
        row[: len(label)] = label
    images = np.stack([model.processor(tiny.draw(text)) for text in texts])
    before = jax.tree.map(np.array, model.parameters)
    said = preflight.learns_by_heart(config, model.parameters, model.tokenizer, Batch(images, labels, ()), 300)
    assert "4 lines learned by heart" in said
    tiny.equal_trees(jax.tree.map(np.array, model.parameters), before)
    same = np.repeat(images[:1], 4, axis=0)
    with pytest.raises(preflight.Failed, match="were not learned by heart in 30 steps"):
        preflight.learns_by_heart(config, model.parameters, model.tokenizer, Batch(same, labels, ()), 30)
