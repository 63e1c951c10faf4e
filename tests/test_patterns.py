"""Texts held to an automaton or a pattern: tokens as of transformers' `prefix_allowed_tokens_fn`, texts that `re` matches."""

import json
import pickle
import re
import string
import sys
from functools import cache

import batching
import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import nchw, ours, random_config, random_pixels, torch_model
from test_decoding import LIMIT, read, rows
from test_tokens import ROBERTA, XLM, directory  # noqa: F401

from trocr_jax import Reader, cli, sharding
from trocr_jax.decoding import GenerateConfig, generate
from trocr_jax.engine import Engine, Job
from trocr_jax.files import PACKAGED
from trocr_jax.generation import constraint as constraint_module
from trocr_jax.generation.constraint import NOWHERE, Constraint
from trocr_jax.patterns import check, constraint
from trocr_jax.serve.api import launch
from trocr_jax.serve.api.config import Config
from trocr_jax.serve.api.keys import Keys
from trocr_jax.tokens import Tokenizer, character_vocabulary

pytest.importorskip("outlines_core", reason="needs outlines-core")

TEXTS = ["17.03.1998", "01.12.2003", "31.10.2024"]
DATE = r"[0-9]{2}\.(0[1-9]|1[0-2])\.(19|20)[0-9]{2}"


def automaton(vocabulary: int, eos: int, seed: int, states: int = 7) -> Constraint:
    """A random one, in which some states are ends, and some tokens may follow in none."""
    rng = np.random.default_rng(seed)
    edges = [(s, eos, states) for s in range(states) if rng.random() < 0.4 or s == states - 1]
    edges += [(s, vocabulary // 2, s + 1) for s in range(states - 1)]
    for state in range(states):
        tokens = rng.choice(vocabulary // 2, int(rng.integers(1, 8)), replace=False)
        edges += [(state, int(token), int(rng.integers(states))) for token in tokens if token != eos]
    return Constraint.from_edges("a random one", edges, 0, states)


def follow(constraint: Constraint, tokens: list[int]) -> int:
    """The state behind tokens, step by step in plain Python; NOWHERE behind one that may not follow."""
    state = 0
    for token in tokens:
        known = state != NOWHERE and token < len(constraint.classes)
        state = int(constraint.table[state, constraint.classes[token]]) if known else NOWHERE
    return state


def allowed(constraint: Constraint, tokens: list[int]) -> list[int]:
    """The tokens that may follow; never none, which transformers refuses."""
    state = follow(constraint, tokens)
    following = np.flatnonzero(constraint.table[state, constraint.classes] != NOWHERE).tolist()
    return following if state != NOWHERE and following else [0]


SETTINGS = [
    {},
    {"min_new_tokens": 3},
    {"no_repeat_ngram_size": 2},
    {"num_beams": 3},
    {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": 0.7},
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()) or "greedy")
def test_tokens_are_those_of_transformers_prefix_allowed_tokens_fn(options):
    seed = SETTINGS.index(options)
    config = random_config("ABC"[seed % 3], seed)
    reference, pixels = torch_model(config, seed, scale=0.15), random_pixels(config, 4, seed)
    held = automaton(config.decoder.vocab_size, config.eos_token_id, seed)
    with torch.no_grad():
        expected = reference.generate(
            nchw(pixels), max_new_tokens=LIMIT, do_sample=False,
            prefix_allowed_tokens_fn=lambda _, ids: allowed(held, ids[1:].tolist()), **options,
        )[:, 1:].numpy()  # fmt: skip
    found = rows(read(ours(reference, config), pixels, GenerateConfig(LIMIT, constraint=held, **options)))
    for own, other in zip(found, expected, strict=True):
        assert whole(own, config.eos_token_id) == whole(other, config.eos_token_id)


def whole(tokens: np.ndarray, eos: int) -> list[int]:
    """Up to the end: what transformers' beam search fills up with is the end token where the pad token is 0."""
    return tokens[: np.argmax(tokens == eos) + 1 if eos in tokens else len(tokens)].tolist()


@pytest.fixture(scope="module")
def small():
    config = random_config("A", 0)
    model = ours(torch_model(config, 0, scale=0.15), config)
    return model, random_pixels(config, 6), automaton(config.decoder.vocab_size, config.eos_token_id, 3)


MODES = [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "temperature": 2.0, "top_k": 9, "top_p": 0.95}]


@pytest.mark.parametrize("options", MODES, ids=["greedy", "beams", "sampling"])
def test_all_rows_are_held_whatever_stands_beside_them(small, options):
    model, pixels, held = small
    config, seeds = GenerateConfig(LIMIT, constraint=held, **options), jnp.arange(6, dtype=jnp.uint32)
    together = read(model, pixels, config, seeds=seeds)
    for row, (tokens, lengths) in enumerate(zip(np.asarray(together.tokens), np.asarray(together.lengths), strict=True)):
        assert all(follow(held, own[:length].tolist()) != NOWHERE for own, length in zip(tokens, lengths, strict=True))
        alone = read(model, pixels[row : row + 1], config, seeds=seeds[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], tokens)
    free = read(model, pixels, GenerateConfig(LIMIT, **options), seeds=seeds)
    assert (np.asarray(free.tokens) != np.asarray(together.tokens)).any(), "a model that writes so by itself proves nothing"


def test_probabilities_stay_the_model_s_own(small):
    model, pixels, held = small
    found = read(model, pixels, GenerateConfig(LIMIT, constraint=held))
    ids = jnp.concatenate([jnp.full((6, 1), model.config.decoder_start_token_id), found.tokens[:, 0, :-1]], axis=1)
    logits = model.decoder.logits(model.decoder(ids, model.encode(jnp.asarray(pixels))))
    raw = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), found.tokens[:, 0, :, None], axis=2)[..., 0]
    real = np.arange(LIMIT) < np.asarray(found.lengths)
    np.testing.assert_allclose(np.where(real, found.logprobs[:, 0], 0), np.where(real, raw, 0), atol=1e-4)


def test_it_has_the_last_word_over_other_rules(small):
    """Of one text of two tokens: neither more tokens nor a rule against repeating can be had."""
    model, pixels, _ = small
    eos = model.config.eos_token_id
    held = Constraint.from_edges("twice", [(0, 7, 1), (1, 7, 2), (2, eos, 3)], 0, 3)
    for options in ({"min_new_tokens": 5}, {"no_repeat_ngram_size": 1}, {"num_beams": 2, "min_new_tokens": 5}):
        result = read(model, pixels, GenerateConfig(LIMIT, constraint=held, **options))
        np.testing.assert_array_equal(result.tokens[:, 0, :3], [[7, 7, eos]] * 6)


def test_sequences_that_cannot_be_are_not_there(small):
    """Four are asked for, and two texts are allowed."""
    model, pixels, _ = small
    eos = model.config.eos_token_id
    held = Constraint.from_edges("seven or nine", [(0, 7, 1), (0, 9, 1), (1, eos, 2)], 0, 2)
    result = read(model, pixels, GenerateConfig(LIMIT, num_beams=4, num_return_sequences=4, constraint=held))
    np.testing.assert_array_equal(np.asarray(result.lengths), [[2, 2, 0, 0]] * 6)
    assert [sorted(own) for own in np.asarray(result.tokens)[:, :2, 0].tolist()] == [[7, 9]] * 6


def test_bfloat16_and_devices(small):
    model, pixels, held = small
    memory, config = model.encode(jnp.asarray(pixels)), GenerateConfig(LIMIT, num_beams=2, constraint=held)
    expected = generate(model, memory, config)
    mesh = sharding.make_mesh("data=2,model=2")
    np.testing.assert_array_equal(
        sharding.generate(sharding.place(model, mesh), memory, config, mesh=mesh).tokens, expected.tokens
    )
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    tokens = np.asarray(read(half, pixels, config).tokens)[:, 0]
    assert all(follow(held, whole(own, model.config.eos_token_id)) != NOWHERE for own in tokens)


def test_equal_automata_share_a_program():
    held, same, other = (automaton(40, 2, seed) for seed in (0, 0, 1))
    assert held == same and hash(held) == hash(same) and held != other and held != "a random one"
    assert GenerateConfig(constraint=pickle.loads(pickle.dumps(held))) == GenerateConfig(constraint=held)


def test_tables_that_differ_in_shape_alone_are_not_equal():
    classes, table = np.array([0, 1], np.int32), np.array([0, 1, NOWHERE, 1, 0, NOWHERE], np.int32)
    assert Constraint("a", classes, table.reshape(2, 3)) != Constraint("a", classes, table.reshape(3, 2))


@pytest.mark.parametrize(("classes", "table"), [([0, 2], [[0, 0]]), ([-1, 1], [[0, 0]]), ([0, 1], [[0, 1]]), ([0, 1], [[-2, 0]])])
def test_a_table_that_leads_out_of_itself_is_refused(classes, table):
    with pytest.raises(ValueError, match="classes must lie in"):
        Constraint("wrong", np.array(classes, np.int32), np.array(table, np.int32))


def test_a_model_with_fewer_tokens_is_refused(small):
    model, pixels, _ = small
    tokens = model.config.decoder.vocab_size + 1
    wide = Constraint("wide", np.ones(tokens, np.int32), np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError, match=f"wide is for a tokenizer of {tokens} tokens, the model has {tokens - 1}"):
        read(model, pixels, GenerateConfig(LIMIT, constraint=wide))


def test_states_on_no_way_from_start_to_end_are_left_out():
    held = Constraint.from_edges("one", [(5, 1, 6), (5, 3, 8), (8, 3, 8), (4, 4, 6), (6, 2, -1)], 5, -1)
    assert held.table.shape == (3, 3) and allowed(held, []) == [1] and allowed(held, [1]) == [2]
    for edges in ([(0, 1, 1), (2, 3, -1)], []):
        with pytest.raises(ValueError, match="a dead one allows no text at all"):
            Constraint.from_edges("a dead one", edges, 0, -1)


def test_what_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(constraint_module, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"the pattern 'a\{99\}' is too large: 101 states and 2 kinds of tokens"):
        constraint("a{99}", character_vocabulary(""))


def test_only_a_constraint_is_one():
    with pytest.raises(ValueError, match="constraint must be a Constraint, as patterns.constraint makes it, not 'abc'"):
        GenerateConfig(constraint="abc")  # pyright: ignore[reportArgumentType]


# not \d and \w: Rust's tables of signs are of another Unicode than those of Python
PATTERNS = [
    DATE, "[A-Z]{1,3} ?[0-9]{1,4}", "(?i)yes|no|maybe so", "[a-zß]+( (und|and) [A-Z]{2,9})?", r" ?\$?[0-9]+(\.[0-9]{2})?",
    "é+(日本)?", ".{0,3}", "",
]  # fmt: skip


@pytest.fixture(scope="module", params=["characters", "roberta", "xlm", "packaged"])
def tokenizer(request, directory):  # noqa: F811
    kinds = {"roberta": ROBERTA, "xlm": XLM}
    if request.param == "characters":
        return character_vocabulary("äöü")
    return Tokenizer.from_directory(PACKAGED if request.param == "packaged" else directory(kinds[request.param]))


held_by = cache(constraint)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whatever_way_it_is_followed_the_text_matches(tokenizer, pattern):
    held, rng = held_by(pattern, tokenizer), np.random.default_rng(0)
    for _ in range(40):
        ids: list[int] = []
        while (not ids or ids[-1] != tokenizer.eos_token_id) and len(ids) < 60:
            choice = allowed(held, ids)
            ends = tokenizer.eos_token_id in choice and rng.random() < 0.3
            ids.append(tokenizer.eos_token_id if ends else int(rng.choice(choice)))
        assert ids[-1] != tokenizer.eos_token_id or re.fullmatch(pattern, tokenizer.decode(ids)), tokenizer.decode(ids)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_text_that_matches_can_be_written_as_the_model_learnt_it(tokenizer, pattern, data):
    signs = string.printable.strip() + " éß日本"
    text = data.draw(st.from_regex(pattern, fullmatch=True, alphabet=signs))
    ids = tokenizer.labels(text)
    if text and tokenizer.decode(ids) == text:  # SentencePiece writes some texts otherwise
        assert follow(held_by(pattern, tokenizer), ids) != NOWHERE


@pytest.mark.parametrize("wrong", ["(", "a)", "[z-a]", r"(?=a)b", r"(a)\1", "^a", "a$", r"a\b", "a)|(?:b", "*"])
def test_what_cannot_be_followed_is_refused(wrong):
    with pytest.raises(ValueError, match="is no regular expression, or none that can be followed token by token"):
        check(wrong)
    with pytest.raises(ValueError, match=re.escape(f"the pattern {wrong!r} is no")):
        constraint(wrong, character_vocabulary(""))


def test_signs_that_the_tokenizer_lacks(directory):  # noqa: F811
    with pytest.raises(ValueError, match="the tokenizer has no tokens for some of its texts"):
        constraint("\U00012345", Tokenizer.from_directory(directory(XLM)))


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    with pytest.raises(ValueError, match=r"needs the Python package 'outlines_core': pip install 'trocr-jax\[pattern\]'"):
        check("a")


@pytest.fixture(scope="module")
def reader():
    return Reader.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def drawn():
    return [tiny.draw(text) for text in TEXTS]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_reader_reads_what_matches(reader, drawn, beams):
    free, other = reader.read(drawn, num_beams=beams), r"[0-9]{2}/[0-9]{2}/(1[0-8]|20)[0-9]{2}"
    assert reader.read(drawn, pattern=DATE, num_beams=beams) == free
    for line, own in zip(reader.read(drawn, pattern=other, num_beams=beams), free, strict=True):
        assert re.fullmatch(other, line.text) and line.confidence < own.confidence, "what the picture shows is likelier"


def test_a_reader_refuses_what_is_no_pattern(reader, drawn):
    with pytest.raises(ValueError, match="no regular expression"):
        reader.read(drawn, pattern="(")
    with pytest.raises(ValueError, match="pattern must be a string"):
        reader.read(drawn, pattern=["a", "b"])


def test_the_choice_between_texts_has_as_many_alternatives_as_there_are(reader, drawn):
    line = reader.read(drawn[0], pattern=r"17\.03\.1998|17\.08\.1998", num_beams=4, num_return_sequences=4)
    assert [line.text, *(other.text for other in line.alternatives)] == ["17.03.1998", "17.08.1998"]


def test_an_engine_holds_all_its_jobs_to_its_own(reader, drawn):
    processor, config = reader.processor, reader.configured(DATE, max_new_tokens=16)
    engine = Engine(reader.model, processor.mean, processor.std, config, slots=2, batch=2, beams=(2,))
    searched = reader.configured(DATE, max_new_tokens=16, num_beams=2)
    jobs = [*(Job(processor(image), config) for image in drawn), Job(processor(drawn[1]), searched)]
    engine.submit(jobs)
    while not all(job.over for job in jobs):
        engine.turn()
    expected = [*reader.read(drawn, pattern=DATE), reader.read(drawn[1], pattern=DATE, num_beams=2)]
    assert [reader.tokenizer.decode(job.tokens) for job in jobs] == [line.text for line in expected]
    with pytest.raises(ValueError, match="constraint is fixed to Constraint"):
        engine.submit([Job(processor(drawn[0]), GenerateConfig(16))])


def test_onnx_runtime_holds_to_it_too(reader, drawn):
    backend = pytest.importorskip("trocr_jax.serve.onnx_backend", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    theirs = backend.OnnxReader.from_pretrained(precision="float32")
    options = {"pattern": DATE, "min_new_tokens": 20}
    expected = [line.text for line in reader.read(drawn, **options)]
    assert [line.text for line in theirs.read(drawn, **options)] == expected
    defaults = reader.configured(**options)
    own = backend.OnnxReader(reader.model, reader.tokenizer, reader.processor, defaults, precision="float32")
    assert [line.text for line in own.read(drawn)] == expected, "of the defaults, too"


@pytest.fixture
def stored(tmp_path):
    """The drawn dates as files."""
    return batching.folder(tmp_path / "lines", {f"{number}.png": batching.png(text) for number, text in enumerate(TEXTS)})


def test_read_tells_where_a_pattern_forced_it(stored, capsys):
    assert cli.main(["read", str(stored), "--pattern", DATE]) == 0
    out, err = capsys.readouterr()
    assert out.split() == TEXTS and "hardly sees" not in err
    assert cli.main(["read", str(stored), "--pattern", "[A-Z]{3}"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch("([A-Z]{3}\n){3}", out) and err.count("a pattern may have forced it") == 3


@pytest.mark.parametrize("verb", [["read", "x.png"], ["batch", ".", "out"], ["serve"]], ids=lambda verb: verb[0])
def test_commands_refuse_what_is_no_pattern(verb, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*verb, "--pattern", "("]) == 2
    assert "--pattern: the pattern '(' is no regular expression" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_batch_job_holds_all_workers_to_its_own(stored, capsys, tmp_path):
    def batch(out: str, *flags: str):
        return batching.batch(capsys, stored, tmp_path / out, options=["--decoders", "1", *flags])

    assert batch("out", "--pattern", DATE)[0] == 0
    assert [row["text"] for row in batching.rows(tmp_path / "out")] == TEXTS
    assert batch("out")[0] == 0
    code, _, err = batch("out", "--pattern", "[A-Z]+")
    assert code == 2 and f"begun with --pattern {DATE}" in err
    code, summary, _ = batch("other", "--pattern", "[A-Z]{3}")
    assert code == 0 and summary["flags"] == {"unlikely": 3}
    assert all(re.fullmatch("[A-Z]{3}", row["text"]) for row in batching.rows(tmp_path / "other"))


def test_a_server_holds_all_its_models_to_its_own(reader):
    readers = [served.reader for served in launch._service(Config(pattern=DATE, slots=2), Keys([])).models.values()]
    assert [own.defaults for own in readers] == [reader.configured(DATE)]


@pytest.mark.parametrize("turned", [0, 90])
def test_what_its_lines_are_held_to_does_not_turn_a_page(turned, tmp_path, capsys):
    image, _ = pages.draw_page(pages.Layout(), 0)
    image.crop((0, 0, 1240, 500)).rotate(-turned, expand=True).save(tmp_path / "page.png")
    assert cli.main(["read", "--page", "--format", "json", "--pattern", "[a-z ]+", str(tmp_path / "page.png")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["turned"] == turned and len(found["lines"]) > 3
    assert all(re.fullmatch("[a-z ]+", line["text"]) for line in found["lines"])
    assert re.search("lines have what the model hardly sees .* a pattern may have forced them", err)
