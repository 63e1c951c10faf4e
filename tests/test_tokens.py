"""Tokens: ids, text and offsets equal to transformers' tokenizers; files in and out; damaged files."""

import json
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import FAMILIES, ROOT, shared
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from trocr_jax.agreement import disagreements, misreadings
from trocr_jax.checkpoints.tokenizer_files import TokenizerError
from trocr_jax.config import PRESETS, DecoderConfig, TrOCRConfig
from trocr_jax.files import PACKAGED
from trocr_jax.tokens import Tokenizer, character_vocabulary
from trocr_jax.train.vocabulary import extended

IAM_LINE = 'industry, " Mr. Brown commented icily. " Let us have a'
ROBERTA = ("RobertaTokenizer", "roberta", "microsoft__trocr-base-printed", ("vocab.json", "merges.txt"))
XLM = ("XLMRobertaTokenizer", "trocr-small", "microsoft__trocr-small-printed", ("sentencepiece.bpe.model",))
BOTH = pytest.mark.parametrize("kind", [ROBERTA, XLM], ids=["base", "small"])
LATIN = "".join(map(chr, range(0xA1, 0x180))) + "“”‘’„–—…€£¥"


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def make(kind) -> Path:
        _, tokenizer, config, files = kind
        path = tmp_path_factory.mktemp(tokenizer)
        for name in files:
            shutil.copyfile(shared("tokenizer", tokenizer, name), path / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(shared("hub_configs", config, name), path / name)
        return path

    return make


@pytest.fixture(scope="session")
def ours(directory):
    return cache(lambda kind: Tokenizer.from_directory(directory(kind)))


@pytest.fixture(scope="session")
def theirs(directory):
    return cache(lambda kind: reference(kind[0], directory(kind)))


def reference(name: str, path: Path):
    import transformers

    return getattr(transformers, name).from_pretrained(path)


ODD = [
    *"<s> </s> <mask> <pad> <unk> ＜ｍａｓｋ＞ <ma sk> ▁ Ġ Ċ ﬁ ½ ① ㌀ Ａ １２ … ‥ ﷺ e\u0301 ñ ß ẞ İ ı ſ Å Ω µ".split(),
    *"नमस्ते สวัสดี 안녕 中文 日本 العربية עברית 👩‍👩‍👧‍👦 🏳️‍🌈 🎉 🇩🇪 's n't ... ----- 1234567890".split(),
    *"\ufeff\u200b\u200d\u00ad\u2028\u00a0\u3000\x00\x07\x1b\x7f\x85\ufffd\t\n\r",
    *("  ", "\r\n", " \n ", "   ", "a" * 40),
]


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = "the of Total EUR invoice Mr. O'Neill's you're 12.50 2024-11-22 a@b.com (f) [x] \"q\" naïve Übergröße".split()

    def part() -> str:
        choice = rng.random()
        if choice < 0.4:
            return rng.choice(words)
        if choice < 0.6:
            return rng.choice(ODD)
        if choice < 0.7:
            return " " * rng.randrange(4)
        top = rng.choice((0x80, 0x250, 0x3000, 0xD800, 0x110000))
        characters = (rng.randrange(top) for _ in range(rng.randrange(1, 6)))
        return "".join(chr(c) for c in characters if not 0xD800 <= c < 0xE000)

    return [
        "",
        " ",
        *(rng.choice(("", " ")).join(part() for _ in range(rng.randrange(1, 9))) for _ in range(count - 2)),
    ]


# --- equal to transformers --------------------------------------------------------------------------------------------


@BOTH
def test_known_ids(kind, ours) -> None:
    tokenizer = ours(kind)
    small = kind is XLM
    assert tokenizer.encode("Hello world") == ([0, 9584, 218, 2] if small else [0, 31414, 232, 2])
    assert tokenizer.labels("Hello world") == tokenizer.encode("Hello world")[1:]
    assert tokenizer.size == (64002 if small else 50265)
    specials = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert specials == (0, 1, 2, 3)
    assert tokenizer.encode("") == [0, 2] and tokenizer.labels("") == [2] and tokenizer.decode([]) == ""


def test_a_line_of_iam(ours) -> None:
    ids = [0, 21267, 1506, 6, 22, 427, 4, 1547, 7181, 41591, 5846, 4, 22, 2780, 201, 33, 10, 2]
    assert ours(ROBERTA).encode(IAM_LINE) == ids
    assert ours(ROBERTA).decode(ids) == IAM_LINE  # no clean-up of the space before the quote
    assert ours(ROBERTA).encode(" Hello world") == [0, 20920, 232, 2]


@BOTH
def test_10000_random_strings(kind, ours, theirs) -> None:
    texts = random_texts(10_000, seed=1)
    tokenizer, oracle = ours(kind), theirs(kind)
    want = oracle(texts)["input_ids"]
    bare = oracle(texts, add_special_tokens=False)["input_ids"]
    back = oracle.batch_decode(want, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for text, ids, inner, decoded in zip(texts, want, bare, back, strict=True):
        assert tokenizer.encode(text) == ids, ascii(text)
        assert tokenizer.labels(text) == [*inner, 2], ascii(text)
        assert tokenizer.decode(ids) == decoded, ascii(text)


def test_byte_level_round_trips_any_text(ours) -> None:
    for text in random_texts(2000, seed=2):
        if not any(special in text for special in ("<s>", "</s>", "<mask>", "<pad>", "<unk>")):
            assert ours(ROBERTA).decode(ours(ROBERTA).encode(text)) == text


@BOTH
def test_random_ids_decode_alike_and_have_spans(kind, ours, theirs) -> None:
    """What an untrained model may give: broken characters, ids without a token, specials in the middle."""
    rng = random.Random(3)
    tokenizer, oracle = ours(kind), theirs(kind)
    rows = 64044 if kind is XLM else 50265
    for _ in range(2000):
        ids = [rng.choice((rng.randrange(rows), rng.randrange(8), rng.randrange(rows - 60, rows))) for _ in range(12)]
        text = oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids) == text
        check_spans(tokenizer, ids)


def check_spans(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Spans are in order, cover the text without holes, and overlap only within one character."""
    text, reached = tokenizer.decode(ids), 0
    for start, end in tokenizer.spans(ids):
        assert reached - 1 <= start <= reached and start <= end <= len(text)
        assert start == reached or end - start >= 1 or start == end
        reached = max(reached, end)
    assert reached == len(text)


@BOTH
def test_ids_without_a_token_are_skipped(kind, ours) -> None:
    tokenizer = ours(kind)
    ids = tokenizer.encode("Hello world")
    noisy = [64002, 64043, -100, 2**40, *ids, tokenizer.size + 5]
    assert tokenizer.decode(noisy) == "Hello world"
    assert tokenizer.spans(noisy) == [(0, 0)] * 5 + [(0, 5), (5, 11), (11, 11), (11, 11)]


def test_parts_of_one_character_share_its_span(ours) -> None:
    ids = ours(ROBERTA).encode("aქb 🎉")
    spans = ours(ROBERTA).spans(ids)
    text = ours(ROBERTA).decode(ids)
    assert [text[start:end] for start, end in spans] == ["", "a", "ქ", "ქ", "ქ", "b", " 🎉", "🎉", "🎉", ""]
    assert ours(ROBERTA).spans([]) == []


# --- files ------------------------------------------------------------------------------------------------------------


@BOTH
def test_save_gives_back_the_same_files_and_transformers_loads_them(kind, ours, directory, tmp_path: Path) -> None:
    ours(kind).save(tmp_path / "model")
    for file in directory(kind).iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes()
    again, oracle = Tokenizer.from_directory(tmp_path / "model"), reference(kind[0], tmp_path / "model")
    for text in random_texts(200, seed=4):
        assert again.encode(text) == ours(kind).encode(text) == oracle(text)["input_ids"]


@BOTH
def test_a_directory_of_transformers_5(kind, ours, theirs, tmp_path: Path) -> None:
    """transformers 5 saves a lone tokenizer.json."""
    theirs(kind).save_pretrained(tmp_path)
    assert not (tmp_path / kind[3][0]).exists()
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.size, tokenizer.special_ids) == (ours(kind).size, ours(kind).special_ids)
    for text in random_texts(300, seed=5):
        ids = ours(kind).encode(text)
        assert tokenizer.encode(text) == ids and tokenizer.labels(text) == ours(kind).labels(text)
        assert tokenizer.decode(ids) == ours(kind).decode(ids) and tokenizer.spans(ids) == ours(kind).spans(ids)


@BOTH
def test_tokens_that_transformers_5_adds_beside_files_as_they_were(kind, directory, tmp_path: Path) -> None:
    """It writes them into tokenizer.json, and leaves the files of the vocabulary alone where they are there already."""
    shutil.copytree(directory(kind), tmp_path, dirs_exist_ok=True)
    oracle = reference(kind[0], tmp_path)
    oracle.add_tokens(["₿ő"])
    oracle.save_pretrained(tmp_path)
    assert (tmp_path / kind[3][0]).exists()
    tokenizer, text = Tokenizer.from_directory(tmp_path), "pay 5 ₿ő"
    assert tokenizer.size == len(oracle) and tokenizer.encode(text) == oracle(text)["input_ids"]
    assert tokenizer.decode(tokenizer.encode(text)) == oracle.decode(oracle(text)["input_ids"], skip_special_tokens=True)
    grown = extended(tokenizer, "ꙮ")
    assert grown.decode(grown.labels(f"{text} ꙮ")).split()[-2:] in (["₿ő", "ꙮ"], ["5₿ő", "ꙮ"])


def test_a_tokenizer_that_cuts_and_pads_does_neither_here(tmp_path: Path) -> None:
    """Labels that were cut in silence would teach half of every line."""
    kept = Tokenizer.from_directory(ROOT / "trocr_jax" / "tiny-print")
    backend = Backend.from_str(kept._backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_directory(tmp_path).labels("one two three") == kept.labels("one two three")


@BOTH
def test_bare_vocabulary_files(kind, ours, directory, tmp_path: Path) -> None:
    """As fairseq leaves them: no tokenizer_config.json. Saving completes them, so that Auto classes work too."""
    for name in kind[3]:
        shutil.copyfile(directory(kind) / name, tmp_path / name)
    Tokenizer.from_directory(tmp_path).save(tmp_path / "saved")
    oracle = reference("AutoTokenizer", tmp_path / "saved")
    for text in (IAM_LINE, "a <mask>b</s>", ""):
        assert Tokenizer.from_directory(tmp_path / "saved").encode(text) == oracle(text)["input_ids"]
    assert Tokenizer.from_directory(tmp_path).encode(IAM_LINE) == ours(kind).encode(IAM_LINE)


@BOTH
@pytest.mark.parametrize("newer", [True, False])
def test_tokens_added_by_a_fine_tuner(kind, newer: bool, ours, directory, tmp_path: Path) -> None:
    size = ours(kind).size
    shutil.copytree(directory(kind), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if newer:
        flags = {"lstrip": False, "rstrip": False, "single_word": False}
        extra = {str(size): {"content": "ქართული", "normalized": True, "special": False, **flags}}
        extra[str(size + 1)] = {"content": "<date>", "normalized": False, "special": True, **flags}
        config |= {"added_tokens_decoder": extra}
    else:
        (tmp_path / "added_tokens.json").write_text(json.dumps({"ქართული": size, "<date>": size + 1}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<date>"]}))
    config |= {"additional_special_tokens": ["<date>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, oracle = Tokenizer.from_directory(tmp_path), reference(kind[0], tmp_path)
    assert tokenizer.size == size + 2 and size + 1 in tokenizer.special_ids
    for text in ("on <date> ქართული x", "ქართული<date>", "plain <mask> text"):
        ids = oracle(text)["input_ids"]
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
        if kind is XLM:
            check_spans(tokenizer, ids)


def test_prefix_space_is_honoured(directory, tmp_path: Path) -> None:
    shutil.copytree(directory(ROBERTA), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, oracle = Tokenizer.from_directory(tmp_path), reference("RobertaTokenizer", tmp_path)
    assert tokenizer.encode("Hello world") == oracle("Hello world")["input_ids"] == [0, 20920, 232, 2]


def test_merges_with_windows_line_ends(ours, directory) -> None:
    files = {name: (directory(ROBERTA) / name).read_bytes() for name in ROBERTA[3]}
    files["merges.txt"] = files["merges.txt"].replace(b"\n", b"\r\n")
    assert Tokenizer(files).encode(IAM_LINE) == ours(ROBERTA).encode(IAM_LINE)


def test_another_decoder_gets_spans_by_prefixes() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "read": 4, "##ing": 5, "lines": 6}
    backend = Backend(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer({"tokenizer.json": backend.to_str().encode()})
    assert tokenizer.labels("reading lines") == [4, 5, 6, 2]
    assert tokenizer.decode([0, 4, 5, 6, 2]) == "reading lines"
    assert tokenizer.spans([0, 4, 5, 6, 2]) == [(0, 0), (0, 4), (4, 7), (7, 13), (13, 13)]


# --- bad files --------------------------------------------------------------------------------------------------------


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def refused(files: dict[str, bytes], match: str) -> None:
    with pytest.raises(TokenizerError, match=match) as caught:
        Tokenizer(files)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer found"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerError, match="merges.txt"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer found"):
        Tokenizer.from_directory(tmp_path / "nowhere")


def test_unsupported_classes_are_refused_by_name(directory) -> None:
    for kind, other in ((ROBERTA, "GPT2Tokenizer"), (XLM, "CamembertTokenizer"), (XLM, "RobertaTokenizer")):
        config = json.dumps({"tokenizer_class": other}).encode()
        refused(files_of(directory(kind)) | {"tokenizer_config.json": config}, other)


def test_damaged_files(directory) -> None:
    roberta, xlm = files_of(directory(ROBERTA)), files_of(directory(XLM))
    for damage in (b"", b"[]", b"{", b"\xff\xfe\xff", b"[" * 100_000):
        refused(roberta | {"vocab.json": damage}, "vocab.json|damaged")
        refused(roberta | {"tokenizer_config.json": damage}, "tokenizer_config.json")
        refused({"tokenizer.json": damage}, "tokenizer.json")
    refused(roberta | {"vocab.json": b'{"a": "b"}'}, "damaged")
    refused(roberta | {"vocab.json": b'{"a": 0}', "merges.txt": b""}, "<s>")
    for damage in (b"a b c\n", b"one\n", b"no such\n", b"\xff\xff \xff\n"):
        refused(roberta | {"merges.txt": damage}, "damaged")
    for damage in (b"", b"\x00", b"hello", xlm["sentencepiece.bpe.model"][:100_000]):
        refused(xlm | {"sentencepiece.bpe.model": damage}, "sentencepiece")
    refused(roberta | {"tokenizer_config.json": b'{"added_tokens_decoder": {"7": {"content": "new"}}}'}, "'new'.*7")
    refused(roberta | {"tokenizer_config.json": b'{"added_tokens_decoder": {"x": 1}}'}, "damaged")
    del roberta["special_tokens_map.json"]
    refused(roberta | {"tokenizer_config.json": b'{"bos_token": 7}'}, "damaged")
    refused(roberta | {"tokenizer_config.json": b'{"eos_token": "<end>"}'}, "<end>")


def test_mutated_models_load_or_raise_tokenizer_error() -> None:
    """A mutated normaliser can panic inside the Rust library when it meets a text: no Exception of Python's."""
    from sentencepiece import sentencepiece_model_pb2

    rng = random.Random(0)
    original = shared("tokenizer", "trocr-small", "sentencepiece.bpe.model").read_bytes()
    proto = sentencepiece_model_pb2.ModelProto.FromString(original)  # pyright: ignore[reportAttributeAccessIssue]
    del proto.pieces[400:]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(charsmap)
        for _ in range(rng.choice((5, 2000))):
            damaged[rng.randrange(4, len(damaged))] = rng.randrange(256)
        proto.normalizer_spec.precompiled_charsmap = bytes(damaged)
        try:
            Tokenizer({"sentencepiece.bpe.model": proto.SerializeToString()}).encode("Hello ﬁ ½ ① 中文 Ａ")
            outcomes.add("works")
        except TokenizerError:
            outcomes.add("refused")
    assert outcomes == {"works", "refused"}


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        character_vocabulary("é").labels("a\ud800")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(TokenizerError, match="larger"):
        Tokenizer.from_directory(tmp_path)


# --- a small vocabulary -----------------------------------------------------------------------------------------------


def test_character_vocabulary_layout() -> None:
    tokenizer = character_vocabulary(LATIN)
    assert tokenizer.encode("Ab") == [0, 4 + ord("A"), 4 + ord("b"), 2]
    for character in LATIN:
        assert len(tokenizer.labels(character)) == 2
    vocabulary = json.loads(tokenizer.files["vocab.json"])
    assert list(vocabulary)[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and vocabulary["<mask>"] == tokenizer.size - 1
    assert sorted(vocabulary.values()) == list(range(tokenizer.size))
    assert tokenizer.files == character_vocabulary(reversed(LATIN * 2)).files


def test_character_vocabulary_round_trips_and_is_one_token_a_character() -> None:
    tokenizer = character_vocabulary(LATIN + "中文🎉")
    text = "Straße № 7: “naïve” – 12,50 € 中文 🎉!"
    ids = tokenizer.labels(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.spans(ids[:-1])[:6] == [(n, n + 1) for n in range(6)]
    assert len(ids) == len(text) + 1 + 2  # "№" was not given: three bytes
    for text in random_texts(500, seed=6):
        if "<" not in text and "＜" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_loads_a_character_vocabulary(tmp_path: Path) -> None:
    for characters in (LATIN, ""):
        tokenizer = character_vocabulary(characters)
        tokenizer.save(tmp_path)
        oracle = reference("RobertaTokenizer", tmp_path)
        assert len(oracle) == tokenizer.size
        for text in random_texts(300, seed=7):
            ids = oracle(text)["input_ids"]
            assert tokenizer.encode(text) == ids
            assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
        assert Tokenizer.from_directory(tmp_path).files == tokenizer.files


def test_only_single_characters_make_a_vocabulary() -> None:
    for character in ("ab", "", "\ud800"):
        with pytest.raises(ValueError, match="single character"):
            character_vocabulary(["é", character])


def test_a_tokenizer_travels_to_worker_processes() -> None:
    tokenizer = pickle.loads(pickle.dumps(character_vocabulary(LATIN)))
    assert tokenizer.decode(tokenizer.encode("déjà vu")) == "déjà vu"


def test_neither_transformers_nor_jax_is_imported() -> None:
    script = "import sys, trocr_jax.tokens; sys.exit(any(m in sys.modules for m in ('jax', 'torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


# --- whether it belongs to a model ---


def numbered() -> Tokenizer:
    """A tokenizer of 8 tokens with the usual ids."""
    tokens = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcd"])}
    return Tokenizer({"vocab.json": json.dumps(tokens).encode(), "merges.txt": b"#version: 0.2\n"})


def rows(count: int, **ids: int) -> TrOCRConfig:
    return replace(TrOCRConfig(decoder=DecoderConfig(vocab_size=count)), **ids)


def test_real_tokenizers_belong_to_their_models_and_to_no_others(directory) -> None:
    """Every config that is public, with the files of its tokenizer, and the tests' own small models."""
    found = {
        path.name: TrOCRConfig.from_hf(json.loads((path / "config.json").read_text())) for path in shared("hub_configs").iterdir()
    }
    assert len(found) == 5
    tokenizers = {kind: Tokenizer.from_directory(directory(kind)) for kind in (ROBERTA, XLM)}
    for name, config in {**found, **PRESETS}.items():
        own, other = (XLM, ROBERTA) if "small" in name else (ROBERTA, XLM)
        assert disagreements(config, tokenizers[own]) == misreadings(config, tokenizers[own]) == [], name
        assert "tokens and the model" in disagreements(config, tokenizers[other])[0], name
    for name in FAMILIES:
        config = TrOCRConfig.from_hf(json.loads(shared("fixtures", name, "config.json").read_text()))
        assert disagreements(config, numbered()) == [], name


def test_the_package_belongs_together() -> None:
    config = TrOCRConfig.from_hf(json.loads((PACKAGED / "config.json").read_text()))
    assert disagreements(config, Tokenizer.from_directory(PACKAGED)) == []


def test_what_makes_reading_wrong_is_told_from_what_is_unusual() -> None:
    end = ["eos_token_id is 7 in the model and 2 in the tokenizer"]
    assert disagreements(rows(8, eos_token_id=7), numbered()) == misreadings(rows(8, eos_token_id=7), numbered()) == end
    assert misreadings(rows(8, eos_token_id=0), numbered()), "a text's first token is not its last"
    many = ["the tokenizer has 8 tokens and the model 7 rows"]
    assert disagreements(rows(7), numbered()) == misreadings(rows(7), numbered()) == many
    harmless = rows(8 + 257, bos_token_id=5, pad_token_id=6, decoder_start_token_id=5)
    assert misreadings(harmless, numbered()) == []
    assert disagreements(harmless, numbered()) == [
        "bos_token_id is 5 in the model and 0 in the tokenizer",
        "pad_token_id is 6 in the model and 1 in the tokenizer",
        "the tokenizer has 8 tokens and the model 265 rows",
    ]
    assert disagreements(rows(8 + 256), numbered()) == []


def test_a_lone_tokenizer_json_that_ends_labels_with_another_token_can_be_read_with(tmp_path: Path) -> None:
    """As models have that were trained by the notebooks, which take the end from the tokenizer's separator."""
    backend = Backend(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "[SEP]": 4}, unk_token="<unk>"))
    backend.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 4)])
    tokenizer = Tokenizer({"tokenizer.json": backend.to_str().encode()})
    assert misreadings(rows(5, eos_token_id=4), tokenizer) == misreadings(rows(5), tokenizer) == []
    assert misreadings(rows(5, eos_token_id=3), tokenizer) and disagreements(rows(5, eos_token_id=4), tokenizer)
