"""The ONNX graphs: the same tokens and log-probabilities as our own decoding, in every family and style."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from reference import ours, random_config, random_pixels, torch_model

from trocr_jax import Reader, generate
from trocr_jax.decoding import GenerateConfig

onnx_backend = pytest.importorskip("trocr_jax.serve.onnx_backend", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")
from trocr_jax.serve.onnx_graph import Style, quantize, quantize_blocks  # noqa: E402

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
    found = onnx_backend.OnnxModel(model, style).generate(pixels, options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)


def test_int8_stays_close_to_float32():
    config = config_of("A")
    model = ours(torch_model(config, 5), config)
    pixels = random_pixels(config, 3)
    exact, rounded = (onnx_backend.OnnxModel(model, Style(int8=int8)) for int8 in (False, True))
    (a,), (b, turned, scale) = (map(onnx_backend.host, m.encoder.run({"pixels": pixels}).values()) for m in (exact, rounded))
    np.testing.assert_array_equal(b, turned.transpose(0, 2, 1))
    error = np.linalg.norm(a - b * scale.transpose(0, 2, 1)) / np.linalg.norm(a)
    assert 0 < error < 0.05
    options = GenerateConfig(6, min_new_tokens=6)
    expected, found = (m.generate(pixels, options) for m in (exact, rounded))
    np.testing.assert_allclose(found.logprobs[:, :, 0], expected.logprobs[:, :, 0], atol=0.05)


def test_rows_that_go_on_without_the_ended_ones_read_as_before(monkeypatch):
    reader = onnx_backend.OnnxReader.from_pretrained(precision="float32")
    pixels = np.stack([reader.prepare(path).pixels for path in sorted((ROOT / "examples").glob("*.png"))[:4]])
    normal, found = pixels.astype(np.float32) / 127.5 - 1, []
    for share in (0.01, 2.0):  # at every end, never
        monkeypatch.setattr(onnx_backend, "ENDED_SHARE", share)
        found.append(reader.onnx.generate(normal, GenerateConfig(40)))
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


def test_what_the_graphs_cannot_do_is_refused():
    config = config_of("A")
    model = onnx_backend.OnnxModel(ours(torch_model(config, 5), config), Style())
    with pytest.raises(ValueError, match="decodes greedily"):
        model.generate(random_pixels(config, 1), GenerateConfig(4, num_beams=2))
    with pytest.raises(ValueError, match="precision must be"):
        onnx_backend.OnnxReader.from_pretrained(precision="int4")
