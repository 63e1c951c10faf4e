"""One model on 8 virtual devices: every way gives the tokens of one device, and copies of the weights never talk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from trocr_jax import Reader, cli, decoding, sharding
from trocr_jax.decoding import GenerateConfig
from trocr_jax.model import TrOCR, normalize

COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter")
CONFIG = GenerateConfig(12)
IMAGES = 100


@pytest.fixture(scope="module")
def reader():
    return Reader.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def pixels(reader):
    """100 different images of the packaged model's size, uint8."""
    drawn = [reader.processor(tiny.draw(text)) for text in tiny.texts(IMAGES)]
    return jnp.asarray(np.stack(drawn))


@pytest.fixture(scope="module")
def memory(reader, pixels):
    """[100,S,E]"""
    encode = jax.jit(lambda model, x: model.encode(normalize(x, reader.processor.mean, reader.processor.std)))
    return encode(reader.model, pixels)


@pytest.fixture(scope="module")
def alone(reader, memory):
    """What one device generates, and its logits for those tokens under teacher forcing."""
    result = decoding.generate(reader.model, memory, CONFIG)
    assert len({row.tobytes() for row in np.asarray(result.tokens)}) > 10, "the images must differ, or this proves nothing"
    return result, jax.jit(logits)(reader.model, result.tokens[:, 0], memory)


def logits(model, ids, memory):
    return model.decoder.logits(model.decoder(ids, memory))


def assert_same(result, expected):
    np.testing.assert_array_equal(np.asarray(result.tokens), np.asarray(expected.tokens))
    np.testing.assert_array_equal(np.asarray(result.finished), np.asarray(expected.finished))
    np.testing.assert_allclose(np.asarray(result.logprobs), np.asarray(expected.logprobs), atol=1e-4)


@pytest.mark.parametrize(
    "mesh, rules",
    [("data=8", None), ("data=4,model=2", None), ("data=8", sharding.FSDP), ("data=2,model=4", sharding.TENSOR_FSDP)],
    ids=["shard_map", "data x model", "FSDP", "data x model, FSDP"],
)
def test_every_mesh_gives_the_tokens_and_logits_of_one_device(reader, memory, alone, mesh, rules):
    mesh = sharding.make_mesh(mesh)
    model = sharding.place(reader.model, mesh, rules)
    sizes = {x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(model)}
    assert sizes == {1.0} if rules is None and mesh.shape["model"] == 1 else min(sizes) <= 1 / 2
    assert_same(sharding.generate(model, memory, CONFIG, mesh=mesh), alone[0])
    ids, rows = (jax.device_put(x[:96], NamedSharding(mesh, P("data"))) for x in (alone[0].tokens[:, 0], memory))
    np.testing.assert_allclose(np.asarray(jax.jit(logits)(model, ids, rows)), np.asarray(alone[1])[:96], atol=1e-4)


def test_pmap_gives_the_tokens_and_logits_of_one_device(reader, memory, alone):
    copies, parts = jax.tree.map(lambda x: jnp.stack([x] * 4), reader.model), memory.reshape(4, 25, *memory.shape[1:])
    result = sharding.pmap_generate(copies, parts, CONFIG)
    assert_same(jax.tree.map(lambda x: x.reshape(IMAGES, *x.shape[2:]), result), alone[0])
    found = jax.pmap(logits)(copies, alone[0].tokens[:, 0].reshape(4, 25, -1), parts)
    np.testing.assert_allclose(np.asarray(found).reshape(alone[1].shape), np.asarray(alone[1]), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beam"])
def test_copies_of_the_weights_never_wait_for_each_other(directory, options):
    """From pixels to tokens; weights that are cut must talk, which shows that the pattern finds it."""
    small = Reader.from_pretrained(directory)
    config = GenerateConfig(4, **options)
    work = sharding.Read(config, small.processor.mean, small.processor.std)
    found = {}
    for text in ("data=8", "data=4,model=2"):
        mesh = sharding.make_mesh(text)
        images, limits = (
            jax.device_put(x, NamedSharding(mesh, P("data")))
            for x in (np.zeros((8, *tiny.SIZE, 3), np.uint8), np.full(8, 4, np.int32))
        )
        program = sharding.partitioned if "model" in text else sharding.data_parallel
        compiled = program.lower(sharding.place(small.model, mesh), images, None, limits, work, mesh).compile().as_text()
        found[text] = len(COLLECTIVE.findall(compiled))
    assert found["data=8"] == 0 and found["data=4,model=2"] > 0, found


@pytest.fixture(scope="module")
def small():
    """A model and 4 images' worth of pixels."""
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(4, *tiny.SIZE, 3)), jnp.float32)
    return TrOCR(tiny.MODEL, rngs=nnx.Rngs(0)), pixels


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beam", "sampling"])
def test_the_programs_run_inside_a_plain_shard_map(small, options):
    """With jax's check of what varies over the devices, which is on by default: pixels to tokens on two of them."""
    model, pixels = small
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    seeds, config = jnp.arange(4, dtype=jnp.uint32), GenerateConfig(6, **options)

    def local(model, pixels, seeds):
        return decoding.generate(model, model.encode(pixels), config, seeds)

    program = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("rows"), P("rows")), out_specs=P("rows")))
    assert_same(program(model, pixels, seeds), jax.jit(local)(model, pixels, seeds))


def test_teacher_forcing_runs_inside_a_plain_shard_map_with_one_text_for_all(small):
    model, pixels = small
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def local(model, pixels):
        return model(pixels, jnp.full((len(pixels), 3), 2, jnp.int32))

    program = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows")))
    np.testing.assert_allclose(program(model, pixels), local(model, pixels), atol=1e-5)


@pytest.mark.parametrize("shape", [{"data": 4}, {"data": 2, "model": 2}], ids=str)
def test_a_mesh_with_explicit_axes_is_taken_as_one_with_auto_axes(small, shape):
    """`jax.make_mesh` makes them so unless told otherwise; also where the caller has set that mesh around everything."""
    model, pixels = small
    mesh = jax.make_mesh(tuple(shape.values()), tuple(shape), devices=jax.devices()[:4])
    assert set(mesh.axis_types) == {AxisType.Explicit}
    memory = jax.jit(TrOCR.encode)(model, pixels)
    expected = decoding.generate(model, memory, GenerateConfig(6))
    placed = sharding.place(model, mesh)
    assert_same(sharding.generate(placed, memory[:3], GenerateConfig(6), mesh=mesh), jax.tree.map(lambda x: x[:3], expected))
    assert sharding.generate(placed, memory[:0], GenerateConfig(6), mesh=mesh).tokens.shape == (0, 1, 6)
    with jax.set_mesh(mesh):
        found = jax.device_get(sharding.generate(placed, memory, GenerateConfig(6), mesh=mesh))
    assert_same(found, expected)


def test_arrays_on_a_mesh_with_explicit_axes_are_refused_and_what_is_advised_works(small):
    model, pixels = small
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    rows, ids = (jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (pixels, jnp.full((4, 3), 2, jnp.int32)))
    memory = jax.device_put(model.encode(pixels), NamedSharding(mesh, P("data")))
    config, words = GenerateConfig(6), "the arrays lie on a mesh with Explicit axes, jax.make_mesh's default: give it axis_types"
    for wrong in (
        lambda: jax.jit(TrOCR.encode)(model, rows),
        lambda: model.decoder(ids, model.encode(pixels)),
        lambda: decoding.generate(model, memory, config),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()

    def read(model, pixels):
        return decoding.generate(model, model.encode(pixels), config)

    advised = jax.sharding.auto_axes(read, out_sharding=NamedSharding(mesh, P("data")))
    assert_same(jax.jit(advised)(jax.device_put(model, NamedSharding(mesh, P())), rows), jax.jit(read)(model, pixels))


def test_a_mesh_without_an_axis_for_the_images_is_refused(small):
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=r"the mesh has no axis 'data', over which images are cut, but \('batch',\)"):
        sharding.place(small[0], mesh)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("sharding") / "model")


def test_13_images_on_8_devices_return_13(directory):
    drawn = [tiny.draw(text) for text in tiny.texts(13)]
    one, eight = Reader.from_pretrained(directory), Reader.from_pretrained(directory, mesh="data=8")
    options = {"max_new_tokens": 4, "num_beams": 2}
    expected = one.read(drawn, **options)
    lines = eight.read(drawn, **options)
    assert len(lines) == 13 and [line.text for line in lines] == [line.text for line in expected]
    memory = jnp.asarray(np.random.default_rng(0).normal(size=(13, 7, 16)), jnp.float32)
    assert sharding.generate(eight.model, memory, GenerateConfig(4), mesh=eight.mesh).tokens.shape == (13, 1, 4)


def test_draws_do_not_depend_on_the_mesh(directory):
    drawn = [tiny.draw(text) for text in tiny.texts(5)]
    options = {"max_new_tokens": 4, "do_sample": True, "seed": 7}
    texts = [
        [line.text for line in Reader.from_pretrained(directory, mesh=mesh).read(drawn, **options)]
        for mesh in (None, "data=4,model=2", "data=8")
    ]
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 1


def test_every_parameter_needs_a_rule_and_odd_axes_stay_whole(reader):
    mesh = sharding.make_mesh("data=4,model=2")
    with pytest.raises(ValueError, match="no sharding rule matches the parameter decoder.embed_norm.bias"):
        sharding.place(reader.model, mesh, ((r"encoder\..*", P()),))
    assert sharding.sharding_of("decoder.embed_tokens.embedding", (459, 256), mesh, sharding.TENSOR).spec == P(None, None)
    assert sharding.sharding_of("decoder.embed_tokens.embedding", (460, 256), mesh, sharding.TENSOR).spec == P("model", None)


@pytest.mark.parametrize("spec", [P("modle", None), P(("data", "model"), None), P(None, None, "model")])
def test_a_rule_that_names_no_axis_of_the_mesh_is_refused(spec):
    mesh = sharding.make_mesh("data=4,model=2")
    with pytest.raises(ValueError, match="the rule for encoder.norm.kernel"):
        sharding.sharding_of("encoder.norm.kernel", (8, 8), mesh, ((".*", spec),))


@pytest.mark.parametrize("text", ["", "8", "data=0", "data=8,", "data=8;model=2", "rows=3", "data=-1", "data=8.0", "data=9" * 9])
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(ValueError, match="a mesh is written as data=8 or data=4,model=2"):
        sharding.parse_mesh(text)


def test_the_command_reads_on_a_mesh_and_tells_what_is_wrong(directory, tmp_path, capsys):
    path = str(ROOT / "examples" / "sum.png")
    assert cli.main(["read", path, "--model", str(directory), "--max-tokens", "2"]) == 0
    assert "on 1 x cpu of 8, --mesh data=8 takes all, float32" in capsys.readouterr().err
    assert cli.main(["read", path, "--model", str(directory), "--mesh", "data=2", "--max-tokens", "2"]) == 0
    assert "on 2 x cpu of 8" in capsys.readouterr().err
    assert cli.main(["read", path, "--mesh", "data=nine"]) == 2
    assert "--mesh: a mesh is written as data=8" in capsys.readouterr().err
    assert cli.main(["read", path, "--mesh", "data=9"]) == 1
    assert "needs 9 devices, but there are 8" in capsys.readouterr().err


def test_an_axis_of_a_mesh_that_is_not_named_has_size_1():
    assert dict(sharding.make_mesh({"data": 2}).shape) == dict(sharding.make_mesh("data=2").shape) == {"data": 2, "model": 1}
