"""The ONNX graphs: the same tokens and log-probabilities as our own decoding, in every family and style."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from reference import ours, random_config, random_pixels, torch_model

from trocr_jax import Reader, generate
from trocr_jax.decoding import GenerateConfig
from trocr_jax.network.encoder import EncoderLayer
from trocr_jax.network.layers import scan_layers
from trocr_jax.prepared import used_width

onnx_backend = pytest.importorskip("trocr_jax.serve.onnx_backend", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")
from trocr_jax.serve.onnx import model as onnx_model  # noqa: E402
from trocr_jax.serve.onnx.graph import Style, quantize, quantize_blocks  # noqa: E402
from trocr_jax.serve.onnx.model import Going, OnnxModel  # noqa: E402

STYLES = [Style(), Style(cross_cache=True), Style(cross_cache=True, plain=True)]


def config_of(family):
    """A random small model whose heads have the size that ONNX Runtime's cached attention takes."""
    config = random_config(family, 5)
    return replace(config, decoder=replace(config.decoder, hidden_size=64))


@pytest.mark.parametrize("family", ["A", "B", "C"])
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_graphs_give_the_tokens_and_log_probabilities_of_generate(family, style):
    config = config_of(family)
    model = ours(torch_model(config, 5), config)
    pixels = random_pixels(config, 3)
    options = GenerateConfig(6, min_new_tokens=2)
    expected = generate(model, model.encode(pixels), options)
    found = OnnxModel(model, style).generate(pixels, options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)


@pytest.mark.parametrize("family", ["A", "C"])
def test_the_left_part_of_an_image_keeps_its_positions(family):
    config = config_of(family)
    (_, w), (down, across), special = config.encoder.patch_size, config.encoder.grid, config.encoder.num_special_tokens
    model = ours(torch_model(config, 5), config)
    pixels, kept = random_pixels(config, 2), across - 1
    places = np.arange(down * across).reshape(down, across)[:, :kept].ravel() + special
    tokens = model.encoder.embed(jnp.asarray(pixels))[:, np.concatenate([np.arange(special), places])]
    hidden, _ = scan_layers(model.encoder.layers, tokens, EncoderLayer.__call__, key=None, remat=False)
    found = OnnxModel(model, Style()).encoder.run({"pixels": np.ascontiguousarray(pixels[:, :, : kept * w])})
    np.testing.assert_allclose(found["memory"], model.encoder.norm(hidden), atol=2e-5)


def test_caches_are_written_where_they_lie_and_rows_that_go_on_move_up_in_them():
    config = config_of("A")
    model = OnnxModel(ours(torch_model(config, 5), config), Style())
    going, ids = Going(model, random_pixels(config, 3), 8), np.array([3, 4, 5])
    cache = going._caches["past_key_0"]
    for place in range(3):
        going.logprobs(ids, place)
    assert cache[:, :, :3].all() and not cache[:, :, 3:].any()
    before = cache.copy()
    going.keep(np.array([False, True, True]), 3)
    np.testing.assert_array_equal(going._caches["past_key_0"], before[1:])
    assert np.shares_memory(going._caches["past_key_0"], cache) and going.rows.tolist() == [1, 2]


def test_int8_stays_close_to_float32():
    config = config_of("A")
    model = ours(torch_model(config, 5), config)
    pixels = random_pixels(config, 3)
    exact, rounded = (OnnxModel(model, Style(int8=int8)) for int8 in (False, True))
    (a,), (b, turned, scale) = (m.encoder.run({"pixels": pixels}).values() for m in (exact, rounded))
    np.testing.assert_array_equal(b, turned.transpose(0, 2, 1))
    error = np.linalg.norm(a - b * scale.transpose(0, 2, 1)) / np.linalg.norm(a)
    assert 0 < error < 0.05
    options = GenerateConfig(6, min_new_tokens=6)
    expected, found = (m.generate(pixels, options) for m in (exact, rounded))
    np.testing.assert_allclose(found.logprobs[:, :, 0], expected.logprobs[:, :, 0], atol=0.05)


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_rows_that_go_on_without_the_ended_ones_read_as_before(style, monkeypatch):
    reader = Reader.from_pretrained()
    model = OnnxModel(reader.model, style)
    pixels = np.stack([reader.prepare(path).pixels for path in sorted((ROOT / "examples").glob("*.png"))[:4]])
    normal, found = pixels.astype(np.float32) / 127.5 - 1, []
    for share in (0.01, 2.0):  # at every end, never
        monkeypatch.setattr(onnx_model, "ENDED_SHARE", share)
        found.append(model.generate(normal, GenerateConfig(40)))
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_array_equal(found[0].lengths, found[1].lengths)
    np.testing.assert_allclose(found[0].logprobs, found[1].logprobs, atol=1e-5)
    assert len(set(found[0].lengths[:, 0].tolist())) > 1


def test_quantized_weights_are_within_half_a_step():
    kernel = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    kernel[:, 3] = 0.0
    weights, scales = quantize(kernel)
    assert weights.dtype == np.int8 and np.abs(weights[:, :3]).max() == 127
    assert (np.abs(weights * scales - kernel) <= scales / 2 * (1 + 1e-5)).all()


def test_blocks_of_weights_are_within_half_a_step_each():
    table = np.random.default_rng(0).standard_normal((8, 20)).astype(np.float32)
    weights, scales = quantize_blocks(table, 16)
    assert weights.shape == (8, 2, 16) and scales.shape == (8, 2) and (weights[:, 1, 4:] == 128).all()
    found = ((weights.astype(np.float32) - 128) * scales[..., None]).reshape(8, 32)[:, :20]
    assert (np.abs(found - table) <= scales.repeat(16, axis=1)[:, :20] / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_reader_on_onnx_runtime_reads_as_the_reader(precision):
    images = sorted((ROOT / "examples").glob("*.png"))[:4]
    expected = Reader.from_pretrained().read(images, num_beams=1)
    found = onnx_backend.OnnxReader.from_pretrained(precision=precision).read(images)
    if precision == "float32":
        assert [line.text for line in found] == [line.text for line in expected]
    same = sum(a.tokens == b.tokens or a.text == b.text for a, b in zip(found, expected, strict=True))
    assert same >= len(images) / 2
    assert all(line.finish_reason in ("stop", "length") for line in found)


def test_only_int8_leaves_out_empty_columns_and_only_of_models_that_know_it(monkeypatch):
    images, widths = sorted((ROOT / "examples").glob("*.png"))[:2], []
    generate = OnnxModel.generate
    monkeypatch.setattr(OnnxModel, "generate", lambda model, x, config: widths.append(x.shape[2]) or generate(model, x, config))
    for precision, trimmed in (("int8", True), ("int8", False), ("float32", True)):
        whole = Reader.from_pretrained()
        processor = replace(whole.processor, trimmed=trimmed)
        onnx_backend.OnnxReader(whole.model, whole.tokenizer, processor, whole.defaults, precision=precision).read(images)
    needed = max(used_width(whole.prepare(path).pixels) for path in images)
    assert widths == [-(-(needed + onnx_backend.MARGIN) // 8) * 8, 512, 512] and widths[0] < 512


def test_long_lists_are_prepared_in_processes_that_end_with_the_reader(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_backend, "MANY", 4)
    monkeypatch.setattr(onnx_backend, "CHUNK", 3)
    images = sorted((ROOT / "examples").glob("*.png"))[:4]
    sources = [*images, tmp_path / "absent.png", images[0].read_bytes(), str(images[1]), np.zeros((20, 90), np.uint8), None]
    reader = onnx_backend.OnnxReader.from_pretrained(precision="float32")
    found, expected = list(reader.prepare_all(sources, 6)), [reader.prepare(source) for source in sources]
    assert [item.error for item in found] == [item.error for item in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.flags, a.aspect) == (b.flags, b.aspect) and np.array_equal(a.pixels, b.pixels)
    processes = [decoder.process for decoder in _decoders(reader) if decoder]
    assert processes and all(process.poll() is None for process in processes)
    del reader
    assert all(process.poll() is not None for process in processes)


def _decoders(reader):
    """Those of a reader, which it keeps."""
    free = reader._decoders._free
    found = [free.get() for _ in range(free.qsize())]
    for decoder in found:
        free.put(decoder)
    return found


def test_what_the_graphs_cannot_do_is_refused():
    config = config_of("A")
    model = OnnxModel(ours(torch_model(config, 5), config), Style())
    with pytest.raises(ValueError, match="decodes greedily"):
        model.generate(random_pixels(config, 1), GenerateConfig(4, num_beams=2))
    with pytest.raises(ValueError, match="max_new_tokens is 99, but this checkpoint has"):
        model.generate(random_pixels(config, 1), GenerateConfig(99))
    whole = Reader.from_pretrained()
    with pytest.raises(ValueError, match="precision must be"):
        onnx_backend.OnnxReader(whole.model, whole.tokenizer, whole.processor, whole.defaults, precision="int4")
    reader = onnx_backend.OnnxReader.from_pretrained()
    for options, message in (({"max_new_tokens": 65}, "64 decoder positions"), ({"num_beams": 2}, "decodes greedily")):
        with pytest.raises(ValueError, match=message):
            reader.stream(iter([]), **options)
    odd = random_config("A", 5)
    with pytest.raises(ValueError, match="multiple of 8 numbers; this decoder's have 12"):
        OnnxModel(ours(torch_model(odd, 5), odd), Style())
    with pytest.raises(ValueError, match="plain graph is written in float32"):
        Style(int8=True, cross_cache=True, plain=True)
