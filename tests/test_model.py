"""The forward pass: equal to the stored outputs of transformers 4.57 and, live, to transformers on torch."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compilation import as_users_have_it
from conftest import FAMILIES, shared
from flax import nnx
from reference import VisionEncoderDecoderModel, close, nchw, ours, random_config, random_pixels, torch_model

from trocr_jax.checkpoints import weights
from trocr_jax.config import TrOCRConfig
from trocr_jax.decoding import GenerateConfig, generate
from trocr_jax.generation.packed import pack, unpack
from trocr_jax.model import TrOCR, cross_entropy, normalize, shift_right
from trocr_jax.network import step_layers
from trocr_jax.network.decoder import Decoder, sinusoidal_table
from trocr_jax.network.encoder import interpolate_grid, patchify


def fixture(family: str) -> tuple[TrOCR, dict[str, np.ndarray]]:
    path = shared("fixtures", family)
    return TrOCR.from_pretrained(path), dict(np.load(path / "reference.npz"))


def nhwc(pixels: np.ndarray) -> jax.Array:
    return jnp.asarray(pixels.transpose(0, 2, 3, 1))


def int32(ids: np.ndarray) -> jax.Array:
    return jnp.asarray(ids.astype(np.int32))


@jax.jit
def everything(model: TrOCR, pixels: jax.Array, ids: jax.Array):
    """Image tokens, embeddings, every layer's states and logits, in one compilation."""
    memory = model.encode(pixels)
    embedded, states = model.decoder.states(ids, memory)
    return memory, embedded, states, model.decoder.logits(states[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_equals_the_stored_reference(family):
    model, ref = fixture(family)
    close(jax.jit(TrOCR.encode)(model, nhwc(ref["pixel_values"])), ref["encoder_last_hidden_state"], 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_decoder_layer_alone_equals_the_stored_reference(family):
    """Fed with the reference's own input, so that no layer inherits the rounding of the ones before it."""
    model, ref = fixture(family)
    memory, states = jnp.asarray(ref["encoder_last_hidden_state"]), ref["decoder_hidden_states"]
    for i in range(model.config.decoder.num_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], model.decoder.layers)
        close(jax.jit(type(layer).__call__)(layer, jnp.asarray(states[i]), memory), states[i + 1], 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_of_the_stored_logits_equals_the_stored_loss(family):
    model, ref = fixture(family)
    labels = stored_labels(model, ref)
    np.testing.assert_array_equal(shift_right(labels, model.config)[0], ref["decoder_input_ids"][0])
    assert abs(loss(model, jnp.asarray(ref["logits"]), labels) - float(ref["loss"])) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_into_the_model_computes_float32_in_full(dtype):
    """Not in the fewer bits that TPUs and GPUs use unless told otherwise; and in those where the caller asks for them."""
    model = TrOCR.from_pretrained(shared("fixtures", FAMILIES[0]), dtype=dtype)
    size = (1, *model.config.encoder.image_size, 3)
    memory = jax.eval_shape(TrOCR.encode, model, jax.ShapeDtypeStruct(size, jnp.float32))
    ids, one = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    cache = jax.eval_shape(lambda: model.decoder.init_cache(1, 4))
    hidden = jax.ShapeDtypeStruct((1, model.config.decoder.hidden_size), model.dtype)
    ways = {
        TrOCR.encode: (model, jax.ShapeDtypeStruct(size, jnp.float32)), TrOCR.__call__: (model, jnp.zeros(size), ids),
        Decoder.states: (model.decoder, ids, memory), Decoder.logits: (model.decoder, hidden),
        Decoder.step: (model.decoder, one, memory, cache, jnp.int32(0), model.decoder.step_layers()),
    }  # fmt: skip
    full = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    for way, arguments in ways.items():
        program = str(jax.make_jaxpr(way)(*arguments))
        with jax.default_matmul_precision("tensorfloat32"):
            asked = str(jax.make_jaxpr(way)(*arguments))
        assert program.count("dot_general[") > 0 and full not in asked
        assert program.count(full) == (program.count("dot_general[") if dtype == "float32" else 0), way


def stored_labels(model: TrOCR, ref: dict[str, np.ndarray]) -> jax.Array:
    return int32(np.where(ref["labels"] < 0, model.config.pad_token_id, ref["labels"]))


def loss(model: TrOCR, logits: jax.Array, labels: jax.Array) -> float:
    total, count = cross_entropy(logits, labels, model.config.pad_token_id)
    return float(total / count)


@pytest.mark.parametrize("family", ["A", "B", "C"])
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow if seed >= 8 else ()) for seed in range(20)])
def test_random_models_equal_torch(family, seed):
    config = random_config(family, seed)
    reference = torch_model(config, seed)
    model = ours(reference, config)
    pixels = random_pixels(config, 3, seed)
    ids = np.random.default_rng(seed).integers(0, config.decoder.vocab_size, (3, 7))
    ids[:, 0] = 2
    with torch.no_grad():
        out = reference(pixel_values=nchw(pixels), decoder_input_ids=torch.from_numpy(ids), output_hidden_states=True)
    memory, embedded, states, logits = everything(model, jnp.asarray(pixels), int32(ids))
    expected = out.encoder_last_hidden_state
    close(memory, reference.enc_to_dec_proj(expected) if config.has_projection else expected, 1e-5)
    for mine, theirs in zip([embedded, *states], out.decoder_hidden_states, strict=True):
        close(mine, theirs, 1e-5)
    close(logits, out.logits, 1e-4)


@pytest.mark.parametrize(("family", "pad"), [("A", 1), ("B", 1), ("C", 1), ("A", 0), ("B", 0), ("B", 3)])
@pytest.mark.parametrize("per_row", [False, True])
def test_steps_with_a_cache_equal_teacher_forcing(family, pad, per_row):
    """And with them the cross-attention without keys and values, and beams that share an image; sinusoidal positions begin
    behind the pad id."""
    config = replace(random_config(family, 1), pad_token_id=pad)
    model = ours(torch_model(config, 1), config)
    memory = model.encode(jnp.asarray(random_pixels(config, 2)))
    ids = int32(np.random.default_rng(0).integers(4, 40, (4, 6)))
    expected = model.decoder.logits(model.decoder(ids, jnp.repeat(memory, 2, axis=0)))
    cache, step = model.decoder.init_cache(4, 8), jax.jit(lambda m, *args: m.decoder.step(*args, m.decoder.step_layers()))
    for t in range(ids.shape[1]):
        position = jnp.full(4, t, jnp.int32) if per_row else jnp.int32(t)
        logits, cache = step(model, ids[:, t], memory, cache, position)
        close(logits, np.asarray(expected[:, t]), 1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_steps_with_turned_kernels_equal_teacher_forcing(monkeypatch, tied):
    """As wide decoders take them on a CPU, in the program and laid out before it; and plain ones laid out for a GPU."""
    monkeypatch.setattr(step_layers, "TRANSPOSED_FROM", 1)
    config = random_config("A", 1)
    config = replace(config, decoder=replace(config.decoder, tie_word_embeddings=tied))
    model = TrOCR(config, rngs=nnx.Rngs(0))
    memory = model.encode(jnp.asarray(random_pixels(config, 3)))
    ids = int32(np.random.default_rng(0).integers(3, 40, (3, 4)))
    expected = model.decoder.logits(model.decoder(ids, memory))
    laid_out = (jax.jit(lambda model, backend=b: model.decoder.step_layers().only_for(backend))(model) for b in ("cpu", "gpu"))
    for layers in (model.decoder.step_layers(), *laid_out):
        cache = model.decoder.init_cache(3, 4)
        for t in range(4):
            logits, cache = model.decoder.step(ids[:, t], memory, cache, jnp.int32(t), layers)
            close(logits, np.asarray(expected[:, t]), 1e-5)


@pytest.mark.parametrize(("backend", "transposes"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_layers_are_laid_out_beside_the_model_as_its_device_reads_them(monkeypatch, backend, transposes):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(step_layers, "TRANSPOSED_FROM", 1)
    model = TrOCR(random_config("A", 1), rngs=nnx.Rngs(0))
    layers, kernel = unpack(pack(model))[1], model.decoder.layers.mlp.fc1.kernel[0]
    assert isinstance(layers, step_layers.Unrolled)
    np.testing.assert_array_equal(layers.layers[0].layer.mlp.fc1.kernel[...], kernel.T if transposes else kernel)


def test_models_that_are_alike_share_programs_when_packed(monkeypatch):
    monkeypatch.setattr(step_layers, "TRANSPOSED_FROM", 1)
    one, other = (pack(TrOCR(random_config("A", 1), rngs=nnx.Rngs(seed))) for seed in (0, 1))
    assert one.structure is other.structure
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_interpolated_positions_equal_torch():
    config = random_config("A", 3)
    config = replace(config, encoder=replace(config.encoder, image_size=(24, 24), patch_size=(8, 8)))  # all that torch's can
    reference = torch_model(config)
    model = ours(reference, config)
    bigger = replace(config.encoder, image_size=(40, 56))
    pixels = random_pixels(replace(config, encoder=bigger), 2)
    with torch.no_grad():
        expected = reference.encoder(nchw(pixels), interpolate_pos_encoding=True).last_hidden_state
    close(model.encoder(jnp.asarray(pixels)), expected, 1e-5)


@pytest.mark.parametrize(("old", "new"), [((24, 24), (12, 40)), ((24, 24), (24, 25)), ((3, 5), (3, 5)), ((1, 48), (2, 20))])
def test_interpolate_grid_equals_torch(old, new):
    table = np.random.default_rng(0).standard_normal((old[0] * old[1], 8)).astype(np.float32)
    grid = torch.from_numpy(table).reshape(1, *old, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    close(interpolate_grid(jnp.asarray(table), old, new), expected.permute(0, 2, 3, 1).reshape(-1, 8), 1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32), (1, 32, 32, 1), (1, 3, 32, 32)])
def test_pixels_of_another_shape_are_refused_with_the_shape_they_must_have(shape):
    model = TrOCR(random_config("A", 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"must have the shape \[B,height,width,3\], not \["):
        model.encode(jnp.zeros(shape))


def test_a_dtype_that_no_model_has_is_named():
    with pytest.raises(ValueError, match="float32, bfloat16 or float16, not int8"):
        TrOCR.from_pretrained(dtype="int8")


def test_patchify_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="30x32 is no multiple of the 16x16"):
        patchify(jnp.zeros((1, 30, 32, 3)), (16, 16))


def test_sinusoidal_table_is_the_reference_s():
    from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding

    expected = TrOCRSinusoidalPositionalEmbedding.get_embedding(1026, 1024, 1)
    close(sinusoidal_table(1026, 1024, 1), expected, 1e-6 * 128)  # one unit in the last place of the largest phase, 1025


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_dtype_from_end_to_end(dtype):
    config = random_config("A", 2)
    model = ours(torch_model(config), config, dtype)
    pixels, ids = jnp.asarray(random_pixels(config, 2)), jnp.full((2, 4), 2, jnp.int32)
    logits = model(pixels, ids)
    memory = model.encode(pixels)
    assert model.dtype == logits.dtype == memory.dtype == dtype
    expected = ours(torch_model(config), config)(pixels, ids)
    close(logits, np.asarray(expected), 1e-4 if dtype == jnp.float32 else 0.05)


@pytest.mark.parametrize("made, cast", [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)], ids=["down", "up"])
@pytest.mark.parametrize("family", ["A", "C"])
def test_parameters_that_were_cast_decide_the_dtype_of_the_computation(family, made, cast):
    """As in a model made in that dtype, bit for bit, and as the same pytree; cast by jax.tree.map, or by nnx's state."""
    config = random_config(family, 2)
    model = TrOCR(config, dtype=made, rngs=nnx.Rngs(0))
    by_tree = jax.tree.map(lambda x: x.astype(cast), model)
    by_state = nnx.merge(nnx.graphdef(model), jax.tree.map(lambda x: x.astype(cast), nnx.state(model)))
    structure = jax.tree.structure(TrOCR.abstract(config, cast))
    expected = jax.tree.unflatten(structure, jax.tree.leaves(by_tree))
    pixels, ids = jnp.asarray(random_pixels(config, 2)), jnp.full((2, 4), 2, jnp.int32)
    logits = [np.asarray(model(pixels, ids)) for model in (by_tree, by_state, expected)]
    found = generate(by_tree, by_tree.encode(pixels), GenerateConfig(4, num_beams=2))
    assert by_tree.dtype == cast and {x.dtype for x in logits} == {np.dtype(cast)}
    assert jax.tree.structure(by_tree) == structure and found.tokens.shape == (2, 1, 4)
    assert logits[0].tobytes() == logits[1].tobytes() == logits[2].tobytes()


def test_abstract_models_know_nothing_of_a_mesh_and_are_nobodys():
    config = random_config("A", 7)
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        first = TrOCR.abstract(config)
    assert {x.sharding for x in jax.tree.leaves(first)} == {None}
    first.decoder = None
    assert TrOCR.abstract(config).decoder is not None


def test_layer_norms_may_stay_in_float32():
    """As mixed precision often leaves them; everything else still computes in bfloat16."""
    config = random_config("A", 2)

    def cast(path, x):
        return x if "norm" in jax.tree_util.keystr(path) else x.astype(jnp.bfloat16)

    model = jax.tree_util.tree_map_with_path(cast, TrOCR(config, rngs=nnx.Rngs(0)))
    pixels, ids = jnp.asarray(random_pixels(config, 2)), jnp.full((2, 4), 2, jnp.int32)
    assert model(pixels, ids).dtype == model.encode(pixels).dtype == jnp.bfloat16
    assert generate(model, model.encode(pixels), GenerateConfig(4)).tokens.shape == (2, 1, 4)


def test_more_tokens_than_positions_are_refused():
    """Indices beyond a table are its last row to jax: every later token would stand at the same place."""
    config = random_config("B", 1)
    model, most = TrOCR(config, rngs=nnx.Rngs(0)), config.decoder.max_positions
    pixels = jnp.asarray(random_pixels(config, 1))
    assert model(pixels, jnp.full((1, most), 2, jnp.int32)).shape[1] == most
    with pytest.raises(ValueError, match=f"lines of {most + 1} tokens, but this checkpoint has {most} decoder positions"):
        jax.jit(TrOCR.__call__)(model, pixels, jnp.full((1, most + 1), 2, jnp.int32))


def test_the_decoder_keeps_of_all_layers_the_last_output_alone():
    """Bit for bit the last of `states`, but compiled without an array of all of them, which training would hold as well."""
    config, rng = random_config("A", 2), np.random.default_rng(0)
    layers, size = config.decoder.num_layers, config.decoder.hidden_size
    decoder = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), TrOCR.abstract(config).decoder)
    inputs = decoder, np.full((3, 5), 2, np.int32), rng.normal(size=(3, 7, config.memory_size)).astype(np.float32)
    last, states = (jax.jit(f).lower(*inputs).compile() for f in (Decoder.__call__, Decoder.states))
    stack = f"f32[{layers},3,5,{size}]"
    assert layers > 1 and stack in states.as_text() and stack not in last.as_text()
    np.testing.assert_array_equal(last(*inputs), states(*inputs)[1][-1])


def test_dropout_needs_a_key_and_remat_changes_nothing():
    config = random_config("C", 4)
    config = replace(
        config,
        encoder=replace(config.encoder, dropout=0.1, attention_dropout=0.1),
        decoder=replace(config.decoder, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1),
    )
    model = TrOCR(config, rngs=nnx.Rngs(0))
    pixels, ids = jnp.asarray(random_pixels(config, 2)), jnp.full((2, 4), 2, jnp.int32)
    plain, dropped = model(pixels, ids), model(pixels, ids, key=jax.random.key(0))
    assert float(jnp.abs(plain - dropped).max()) > 1e-3

    def loss(model, remat):
        return jnp.sum(model(pixels, ids, key=jax.random.key(0), remat=remat) ** 2)

    gradients = [jax.jit(jax.grad(loss), static_argnums=1)(model, remat) for remat in (False, True)]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        close(a, np.asarray(b), 1e-5)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dropout_of_either_half_has_a_key(part):
    config = random_config("A", 4)
    config = replace(config, decoder=replace(config.decoder, dropout=0.0))
    config = replace(config, **{part: replace(getattr(config, part), dropout=0.5)})
    model = TrOCR(config, rngs=nnx.Rngs(0))
    pixels, ids = jnp.asarray(random_pixels(config, 1)), jnp.full((1, 4), 2, jnp.int32)
    assert float(jnp.abs(model(pixels, ids) - model(pixels, ids, key=jax.random.key(0))).max()) > 1e-3


def test_the_loss_of_bfloat16_logits_is_summed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 50, 11)), jnp.bfloat16)
    labels = jnp.full((2, 50), 4, jnp.int32)
    total, count = cross_entropy(logits, labels, 1)
    assert total.dtype == count.dtype == jnp.float32 and count == 100
    assert abs(float(total - cross_entropy(logits.astype(jnp.float32), labels, 1)[0])) < 1e-3


def test_label_smoothing_equals_torch():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((2, 5, 11)).astype(np.float32), rng.integers(2, 11, (2, 5))
    labels[1, 3:] = 1
    total, count = cross_entropy(jnp.asarray(logits), int32(labels), 1, label_smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 11), torch.from_numpy(labels).reshape(-1), ignore_index=1, label_smoothing=0.1
    )
    assert count == 8 and abs(float(total / count) - float(expected)) < 1e-5


def test_normalize_on_the_device_equals_the_processor():
    from trocr_jax.pixels.image_processor import ImageProcessor

    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    processor = ImageProcessor(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    close(jax.jit(normalize, static_argnums=(1, 2))(pixels, processor.mean, processor.std), processor.normalize(pixels), 1e-6)


@pytest.mark.parametrize("graph_mode", ["true", "false"])
def test_modules_are_plain_pytrees_in_both_modes_of_nnx(graph_mode):
    """Flax may make tree mode its default; the model must not care. A process each, because the mode is read at import."""
    code = (
        "import jax, jax.numpy as jnp; from flax import nnx; from trocr_jax.config import *; from trocr_jax.model import TrOCR\n"
        "c = TrOCRConfig(EncoderConfig(image_size=(16, 16), hidden_size=16, num_layers=2, num_heads=2, mlp_size=16),"
        " DecoderConfig(40, 16, 2, 2, 16, cross_attention_size=16))\n"
        "m = TrOCR(c, rngs=nnx.Rngs(0)); m = jax.tree.map(lambda x: x * 2, m)\n"
        "g = jax.jit(jax.grad(lambda m: m(jnp.ones((1, 16, 16, 3)), jnp.full((1, 3), 2)).sum()))(m)\n"
        "print(len(jax.tree.leaves(g)), json.dumps(sorted({jax.tree_util.keystr(p, simple=True, separator='.')"
        " for p, _ in jax.tree_util.tree_leaves_with_path(g)})[:2]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", "import json;" + code],
        capture_output=True,
        text=True,
        env=os.environ | {"NNX_GRAPH_MODE": graph_mode},
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.split(" ", 1)[1]) == ["decoder.embed_norm.bias.value", "decoder.embed_norm.scale.value"]


FLOAT64 = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from trocr_jax.model import TrOCR
path = sys.argv[1]
ref = np.load(path + "/reference.npz")
model = TrOCR.from_pretrained(path, dtype=jnp.float64)
pixels = jnp.asarray(ref["pixel_values"].transpose(0, 2, 3, 1).astype(np.float64))
np.save(sys.argv[2], jax.jit(TrOCR.__call__)(model, pixels, jnp.asarray(ref["decoder_input_ids"].astype(np.int32))))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_the_maths_is_the_reference_s(family, tmp_path):
    """To 1e-9; family B to 2e-5, as its sinusoids are float32 by definition and differ in the last place."""
    path, out = shared("fixtures", family), tmp_path / "logits.npy"
    run = subprocess.run([sys.executable, "-c", FLOAT64, str(path), str(out)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    truth, _ = in_float64(family)
    close(np.load(out), truth[-1], 2e-5 if "sinusoidal" in family else 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_lies_as_near_to_the_truth_as_the_reference_does(family):
    """The fixtures' weights are drawn so wide that float32 rounding grows to 2e-3 in the logits, in the reference too, so no
    fixed number tells right from wrong. Root mean squares are compared: the largest of some thousand errors is a draw that
    changes with every compiler.
    """
    model, ref = fixture(family)
    truth, expected = in_float64(family)
    inputs = model, nhwc(ref["pixel_values"]), int32(ref["decoder_input_ids"])
    _, embedded, states, logits = as_users_have_it(everything, *inputs)(*inputs)
    mine, stored = [embedded, *states, logits], [*ref["decoder_hidden_states"], ref["logits"]]
    errors = [
        [np.sqrt(np.mean((np.asarray(x, np.float64) - c) ** 2)) for x in pair]
        for *pair, c in zip(mine, stored, truth, strict=True)
    ]
    ratios = [own / max(theirs, 1e-6) for own, theirs in errors]
    assert np.mean(ratios) <= 1 and max(ratios) <= 1.2, f"errors, ours and the reference's, layer by layer: {errors}"
    assert abs(loss(model, logits, stored_labels(model, ref)) - expected) < 1e-4


@cache
def in_float64(family: str) -> tuple[list[np.ndarray], float]:
    """The reference computed in float64 from the fixture: embeddings, every layer's states and the logits; the loss."""
    ref = fixture(family)[1]
    reference = VisionEncoderDecoderModel.from_pretrained(shared("fixtures", family)).double().eval()
    positions = reference.decoder.model.decoder.embed_positions
    if hasattr(positions, "weights"):  # transformers 5 leaves this table unfilled
        table = positions.get_embedding(positions.weights.size(0), positions.embedding_dim, positions.padding_idx)
        positions.weights = table.double()
    labels = torch.from_numpy(ref["labels"].astype(np.int64))
    with torch.no_grad():
        pixels, ids = torch.from_numpy(ref["pixel_values"]).double(), torch.from_numpy(ref["decoder_input_ids"])
        out = reference(pixel_values=pixels, decoder_input_ids=ids, output_hidden_states=True)
        expected = torch.nn.functional.cross_entropy(
            out.logits.flatten(0, 1), labels.flatten().where(labels.flatten() >= 0, -100)
        )
    return [state.numpy() for state in (*out.decoder_hidden_states, out.logits)], expected.item()


@pytest.mark.slow
def test_base_at_full_size_equals_torch():
    from trocr_jax.config import PRESETS

    config = PRESETS["microsoft/trocr-base-handwritten"]
    reference = torch_model(config, scale=0.02)
    pixels, ids = random_pixels(config, 1), np.array([[2, 500, 9000, 4, 50000]])
    with torch.no_grad():
        out = reference(pixel_values=nchw(pixels), decoder_input_ids=torch.from_numpy(ids))
    model = ours(reference, config)
    close(jax.jit(TrOCR.encode)(model, jnp.asarray(pixels)), out.encoder_last_hidden_state, 1e-4)
    close(jax.jit(TrOCR.__call__)(model, jnp.asarray(pixels), int32(ids)), out.logits, 1e-4)


def test_weights_of_another_model_are_refused():
    config = random_config("A", 5)
    tensors = {name: t.detach().numpy() for name, t in torch_model(config).state_dict().items()}
    with pytest.raises(weights.WeightsError, match="do not fit"):
        weights.load(TrOCR.abstract(random_config("C", 5)), tensors)


def test_config_of_a_loaded_model_is_the_file_s():
    path = shared("fixtures", FAMILIES[0])
    assert TrOCR.from_pretrained(path).config == TrOCRConfig.from_hf(json.loads((path / "config.json").read_text()))
