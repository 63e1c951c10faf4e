"""The reader on a small random model: order, neighbours, bad images, results; its text is nonsense, its promises are not."""

import io
import itertools
import json
import math
import time
from collections import deque
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT
from PIL import Image

from trocr_jax import decoding
from trocr_jax.buckets import bucket
from trocr_jax.compilation_cache import cache_compilations
from trocr_jax.cores import usable_cores
from trocr_jax.line import NO_NUMBERS, Line, line_from_tokens
from trocr_jax.pixels import ink
from trocr_jax.reader import Prepared, Reader


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("reader") / "model")


@pytest.fixture(scope="module")
def reader(directory):
    return Reader.from_pretrained(directory)


@pytest.fixture(scope="module")
def drawn():
    return [tiny.draw(text) for text in tiny.texts(13)]


def texts(lines):
    return [line.text for line in lines]


def test_the_same_text_alone_batched_shuffled_and_padded():
    """On the model in the package and the pictures in examples/: a random model hardly tells images apart."""
    reader, pictures = Reader.from_pretrained(), sorted((ROOT / "examples").glob("*.[pj][np]g"))
    whole = reader.read(pictures, batch_size=8)
    assert len(set(texts(whole))) > 6, "the model must tell the images apart, or this proves nothing"
    alone = [reader.read(picture) for picture in pictures]
    assert texts(alone) == texts(whole)
    order = np.random.default_rng(0).permutation(len(pictures))
    shuffled = reader.read([pictures[i] for i in order], batch_size=4)
    assert texts(shuffled) == [whole[i].text for i in order]
    for a, b in zip(alone, whole, strict=True):
        assert math.isclose(a.confidence, b.confidence, rel_tol=1e-4)


def test_a_thousand_images_compile_one_program_a_bucket(reader, drawn):
    decoding.read_pixels.clear_cache()
    rng, images = np.random.default_rng(0), 0
    while images < 1000:
        count = int(rng.integers(1, 40))
        assert len(reader.read([drawn[i % len(drawn)] for i in range(count)], batch_size=16, max_new_tokens=4)) == count
        images += count
    assert decoding.read_pixels._cache_size() <= 5, "buckets of 1, 2, 4, 8 and 16"


def test_where_compiling_takes_long_the_last_batch_is_filled_up(directory, drawn, tmp_path):
    reader = Reader.from_pretrained(directory)
    (tmp_path / "empty.png").touch()
    images = [*drawn[:9], tmp_path / "empty.png", drawn[9]]
    options = {"batch_size": 4, "max_new_tokens": 5}
    expected = reader.read(images, **options), reader.read(images, do_sample=True, **options)
    decoding.read_pixels.clear_cache()
    reader.pads_last_batch = True
    found = reader.read(images, **options)
    assert decoding.read_pixels._cache_size() == 1
    assert texts(found) == texts(expected[0]) and texts(reader.read(images, do_sample=True, **options)) == texts(expected[1])
    assert len(reader.read(drawn[:1], **options)) == 1 and decoding.read_pixels._cache_size() == 3, "one image is not filled up"


def test_buckets():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 128)] == [1, 2, 4, 4, 8, 8, 16, 128]


def test_a_bad_image_does_not_harm_the_others(reader, drawn, tmp_path):
    fake, empty = tmp_path / "fake.png", tmp_path / "empty.png"
    fake.write_text("this is no picture")
    empty.touch()
    good = texts(reader.read(drawn[:3], max_new_tokens=6))
    lines = reader.read([drawn[0], fake, drawn[1], empty, b"", tmp_path / "absent.png", drawn[2]], max_new_tokens=6)
    assert [line.text for line in lines if not line.error] == good
    errors = [line.error for line in lines if line.error]
    assert len(errors) == 4 and len({line.text for line in lines if line.error}) == 1
    assert not any("0x" in error or "Traceback" in error for error in errors)


def test_a_mistake_of_ours_costs_one_image_and_not_the_run(reader, drawn, monkeypatch, caplog):
    look = ink.look
    monkeypatch.setattr(ink, "look", lambda image: look(image) if image.width < 999 else 1 / 0)
    lines = reader.read([drawn[0], Image.new("RGB", (1000, 20)), drawn[1]], max_new_tokens=4)
    assert [(bool(line.error), line.finish_reason) for line in lines] == [(False, "length"), (True, None), (False, "length")]
    assert lines[1].error == "the image could not be prepared (ZeroDivisionError)"
    assert "1 / 0" in caplog.text, "where it happened is in the log"


@pytest.mark.parametrize("beams", [1, 2])
def test_a_model_that_gives_no_numbers_is_an_error_and_no_text(drawn, beams):
    reader = Reader.from_pretrained()
    broken = jax.tree.map(lambda x: x * jnp.nan, reader.model.decoder.embed_norm)
    reader.model.decoder.embed_norm = broken
    lines = reader.read(drawn[:2], max_new_tokens=4, num_beams=beams)
    assert [(line.error, line.finish_reason) for line in lines] == [(NO_NUMBERS, None)] * 2
    assert not any(line.text or line.confidence for line in lines)


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn", "foo", "int8", jnp.int32])
def test_dtypes_that_no_model_has_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16"):
        Reader.from_pretrained(dtype=dtype)


def test_a_model_of_grey_images_is_refused(reader):
    model = copy(reader.model)
    model.config = replace(model.config, encoder=replace(model.config.encoder, num_channels=1))
    with pytest.raises(ValueError, match="reads images of 1 channels"):
        Reader(model, reader.tokenizer, reader.processor, reader.defaults)


def test_without_a_home_directory_every_process_compiles_for_itself(monkeypatch):
    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("nowhere to keep them"))
    config = SimpleNamespace(jax_compilation_cache_dir=None)
    monkeypatch.setattr("trocr_jax.compilation_cache.jax", SimpleNamespace(config=config))
    cache_compilations()


@pytest.mark.parametrize("there", [False, True], ids=["cannot be made", "only to be read"])
def test_a_cache_that_cannot_be_written_is_told_once_and_not_by_jax(monkeypatch, tmp_path, caplog, there):
    folder, settings = tmp_path / "trocr-jax" / "xla", {}
    config = SimpleNamespace(jax_compilation_cache_dir=None, update=settings.__setitem__)
    monkeypatch.setattr("trocr_jax.compilation_cache.jax", SimpleNamespace(config=config))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if there:
        monkeypatch.setattr("os.access", lambda *_: False)
    else:
        (tmp_path / "trocr-jax").touch()
    cache_compilations()
    (record,) = caplog.records
    reason = "Permission denied" if there else "Not a directory"
    assert record.getMessage().startswith(
        f"compiled programs cannot be kept in {folder} ({reason}): set JAX_COMPILATION_CACHE_DIR"
    )
    assert list(settings.values()) == [str(folder), math.inf] * there, "what is there is read"


def test_what_gives_no_array_is_an_error_of_its_own_image(reader, drawn):
    class Tensor:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("requires grad")

    lines = reader.read([Tensor(), drawn[0]], max_new_tokens=4)
    assert "Tensor gives no array: requires grad" in lines[0].error and lines[1].error is None


def test_only_bad_images(reader):
    assert [bool(line.error) for line in reader.read([b"", b"x"])] == [True, True]


def test_one_image_gives_one_line_many_give_a_list(reader, drawn):
    assert isinstance(reader.read(drawn[0], max_new_tokens=2), Line)
    for many in (drawn[:2], tuple(drawn[:2]), iter(drawn[:2]), deque(drawn[:2]), {1: drawn[0], 2: drawn[1]}.values()):
        assert len(reader.read(many, max_new_tokens=2)) == 2
    assert reader.read([]) == []


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "file", "array"])
def test_every_kind_of_source(reader, drawn, tmp_path, kind):
    path = tmp_path / "a.png"
    drawn[0].save(path)
    source = {
        "path": path,
        "str": str(path),
        "bytes": path.read_bytes(),
        "file": io.BytesIO(path.read_bytes()),
        "array": np.asarray(drawn[0]),
    }[kind]
    assert reader.read(source, max_new_tokens=6).text == reader.read(drawn[0], max_new_tokens=6).text


def test_open_files_that_give_no_bytes_are_lines_with_an_error(reader):
    closed = io.BytesIO()
    closed.close()
    lines = reader.read([io.StringIO("text"), closed])
    assert "not open for reading bytes" in lines[0].error and "ValueError" in lines[1].error


def test_stream_reads_ahead_but_not_everything(reader, drawn):
    taken = []

    def sources():
        for i in range(100):
            taken.append(i)
            yield drawn[i % len(drawn)]

    stream = reader.stream(sources(), batch_size=2, max_new_tokens=2)
    next(stream)
    assert 4 <= len(taken) <= 20
    stream.close()


def test_a_blank_image_gives_no_text(reader):
    for shade in (0, 127, 255):
        line = reader.read(Image.new("RGB", (200, 40), (shade,) * 3), max_new_tokens=6)
        assert line.text == "" and line.flags == ("no_text",) and line.error is None


def test_pale_text_that_looks_blank_is_kept_where_the_model_is_sure(reader):
    ids, sure, unsure = np.array(reader.tokenizer.labels("pale")), np.full(5, -0.01), np.full(5, -1.0)
    assert reader.line(ids, sure, 5, True, ("no_text",)).text == "pale"
    assert reader.line(ids, unsure, 5, True, ("no_text",)) == Line(flags=("no_text",))


def test_truncation_is_said(reader, drawn):
    line = reader.read(drawn[0], max_new_tokens=1)
    assert line.finish_reason == "length" and len(line.tokens) == 1


def test_beams_and_alternatives(reader, drawn):
    line = reader.read(drawn[0], num_beams=3, num_return_sequences=3, max_new_tokens=5)
    assert len(line.alternatives) == 2
    tokens = [tuple(t.id for t in found.tokens) for found in (line, *line.alternatives)]
    assert len(set(tokens)) == 3


def test_draws_depend_on_the_seed_and_the_place_alone(reader, drawn):
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 8}
    a = reader.read(drawn[:6], batch_size=2, seed=1, **options)
    b = reader.read(drawn[:6], batch_size=6, seed=1, **options)
    c = reader.read(drawn[:6], batch_size=6, seed=2, **options)
    assert texts(a) == texts(b) != texts(c)


def test_unknown_options_are_refused(reader, drawn):
    with pytest.raises(ValueError, match="no option beams; there are pattern, max_new_tokens, .*, num_beams, "):
        reader.read(drawn[0], beams=3)


@pytest.mark.parametrize("sizes", [{"batch_size": 2.0}, {"together": "2"}, {"batch_size": 0}])
def test_sizes_are_whole_numbers(reader, drawn, sizes):
    with pytest.raises(ValueError, match="must be whole numbers, at least 1"):
        reader.stream(drawn, **sizes)


def test_a_stream_of_one_image_is_refused_and_of_an_array_s_images_is_none(reader, drawn):
    for one in (str(drawn[0]), b"\x89PNG", Image.new("L", (9, 9))):
        with pytest.raises(ValueError, match="stream reads many images; for one there is read"):
            reader.stream(one)
    assert len(list(reader.stream(np.full((2, 16, 64), 255, np.uint8)))) == 2


def test_a_tokenizer_of_another_model_is_refused(reader):
    from trocr_jax.tokens import character_vocabulary

    with pytest.raises(ValueError, match="do not belong together"):
        Reader(reader.model, character_vocabulary("äöüßñçàèìòùâêîôû"), reader.processor, reader.defaults, "mix")


def test_a_model_that_ends_with_another_token_than_the_tokenizer_is_refused(tmp_path):
    """It would read on behind the end of the line: babble without a flag."""
    directory = tiny.model_directory(tmp_path / "m", replace(tiny.MODEL, eos_token_id=7))
    with pytest.raises(ValueError, match="eos_token_id is 7 in the model and 2 in the tokenizer: they do not belong together"):
        Reader.from_pretrained(directory)


def test_unusual_ids_that_no_text_depends_on_are_read_with(tmp_path, drawn):
    directory = tiny.model_directory(tmp_path / "m", replace(tiny.MODEL, bos_token_id=5, pad_token_id=6))
    assert Reader.from_pretrained(directory).read(drawn[0]).error is None


def test_what_a_line_holds():
    ids, logprobs = [10, 11, 12, 13, 2], [-0.1, -0.2, -0.3, -0.4, -0.5]
    line = line_from_tokens("ab c", ids, logprobs, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4)], True)
    assert math.isclose(line.confidence, math.exp(-1.5))
    assert [(w.text, w.start, w.end) for w in line.words] == [("ab", 0, 2), ("c", 3, 4)]
    assert math.isclose(line.words[0].confidence, math.exp(-0.3)) and math.isclose(line.words[1].confidence, math.exp(-0.4))
    assert [t.text for t in line.tokens] == ["a", "b", " ", "c", ""]
    assert json.loads(json.dumps(line.to_dict()))["words"][0]["text"] == "ab"


@pytest.mark.parametrize(("probability", "flags"), [(0.011, ()), (0.009, ("unlikely",))])
def test_what_the_model_hardly_sees_is_flagged(probability, flags):
    spans = [(0, 1), (1, 2), (2, 2)]
    for logprobs in itertools.permutations([-0.1, math.log(probability), -0.2]):
        assert line_from_tokens("ab", [10, 11, 2], list(logprobs), spans, True).flags == flags


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("ACCOUNT ON D ON D ON D ON D", True), ("to to to to to", True), ("Total 000000000000000", True),
        ("hahahahahahaha", True), ("Dear Sir, thank you very much for your letter. " * 4, True),
        ("1000000.00", False), ("2/2/2", False), ("no no", False), ("A1-A1-B2", False), ("Mississippi", False), ("", False),
        ("Serial 4444 4444 4444", False), ("-----", False),
    ],
)  # fmt: skip
def test_repetition_is_flagged_and_ordinary_text_is_not(text, repeats):
    line = line_from_tokens(text, [], [], [], True)
    assert ("repetition" in line.flags) == repeats


def test_looking_for_repetition_takes_no_time_in_a_long_text():
    before = time.perf_counter()
    line_from_tokens("-" * 20_000 + " 5", [], [], [], True)
    assert time.perf_counter() - before < 1, "it took the cube of the length: weeks"


def test_the_prepared_image_is_what_the_model_was_trained_on(reader, drawn):
    buffer = io.BytesIO()
    drawn[0].save(buffer, "PNG")
    prepared = reader.prepare(buffer.getvalue())
    assert isinstance(prepared, Prepared) and prepared.pixels is not None
    np.testing.assert_array_equal(prepared.pixels, reader.processor(drawn[0]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/directory/at/all", "no such"),
        ("./absent.pt", "no such"),
        ("absent-owner/absent-model", "absent-owner/absent-model"),
    ],
)
def test_a_checkpoint_that_is_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        Reader.from_pretrained(name)


def test_a_directory_without_config(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        Reader.from_pretrained(tmp_path)


def test_lines_come_in_order_whatever_is_read_together(reader, drawn):
    pictures = [picture.resize((32 + 97 * i % 300, 32)) for i, picture in enumerate(drawn)]
    pictures[4] = b"no picture"
    expected = [reader.read(picture) for picture in pictures]
    for together in (1, 3, 16):
        lines = list(reader.stream(iter(pictures), batch_size=4, together=together))
        assert [(line.text, line.error) for line in lines] == [(line.text, line.error) for line in expected]


def test_a_stream_that_is_left_prepares_no_more(reader, drawn, monkeypatch):
    prepared, prepare = [], reader.prepare

    def slow(source):
        prepared.append(source)
        time.sleep(0.1)
        return prepare(source)

    monkeypatch.setattr(reader, "prepare", slow)
    lines = reader.stream((drawn[0] for _ in range(200)), batch_size=4, together=8)
    next(lines)
    before = len(prepared)
    lines.close()
    assert len(prepared) - before <= 2 * usable_cores()


def test_impossible_requests_are_refused_before_an_image_is_looked_at(reader, drawn):
    impossible = {"batch_size": "at least 1, not 0", "together": "at least 1", "max_new_tokens": "999, but this checkpoint"}
    for name, message in impossible.items():
        options: dict = {name: 999 if name == "max_new_tokens" else 0}
        with pytest.raises(ValueError, match=message):
            reader.stream(iter(drawn), **options)


def test_another_model_can_take_the_place(directory, drawn):
    reader = Reader.from_pretrained(directory)
    first = reader.read(drawn[0])
    reader.model = jax.tree.map(jnp.negative, reader.model)
    other = reader.read(drawn[0])
    assert other.tokens != first.tokens or other.confidence != first.confidence
    assert other.tokens == Reader(reader.model, reader.tokenizer, reader.processor, reader.defaults).read(drawn[0]).tokens


def test_any_integer_is_a_seed(reader, drawn):
    seeds = (-1, 2**32 - 1, 2**70, np.int32(-1), jnp.uint32(2**32 - 1))
    found = [texts(reader.read(drawn[:2], seed=seed, do_sample=True, max_new_tokens=8)) for seed in seeds]
    assert found[0] == found[1] == found[3] == found[4] and len(found[2]) == 2


@pytest.mark.parametrize("seed", [1.5, "7", None, jnp.zeros(1)])
def test_what_is_no_integer_is_no_seed(reader, drawn, seed):
    with pytest.raises(ValueError, match="seed must be a whole number, not "):
        reader.stream(drawn, seed=seed)


def test_draws_belong_to_the_image_and_not_to_its_batch(reader, drawn):
    apart, sorted_ = (
        texts(reader.stream(drawn, batch_size=2, seed=3, together=together, do_sample=True, max_new_tokens=12))
        for together in (1, 8)
    )
    assert apart == sorted_ and len(set(apart)) > 6


def test_a_dtype_that_is_no_float_is_refused_and_int8_is_shown_its_place(directory):
    with pytest.raises(ValueError, match="dtype must be .* not int8; int8 is OnnxReader's"):
        Reader.from_pretrained(directory, dtype="int8")
