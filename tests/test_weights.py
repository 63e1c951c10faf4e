"""Every layout of weights in, the hub's out: bit for bit, strict both ways, and without torch in the process."""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT, shared
from reference import random_config, torch_model

from trocr_jax import pretrained
from trocr_jax.checkpoints import fairseq, tensor_files, weights
from trocr_jax.checkpoints.weights import WeightsError
from trocr_jax.config import PRESETS, ConfigError, DecoderConfig, EncoderConfig, TrOCRConfig
from trocr_jax.files import FilesError
from trocr_jax.model import TrOCR

UNUSED = ("pooler.dense", "_float_tensor")


def load(config, tensors, dtype=jnp.float32):
    return weights.load(TrOCR.abstract(config, dtype), tensors)


def same(found, expected):
    """Equal names and numbers, leaving out what no model computes with."""
    expected = {name: np.asarray(x) for name, x in expected.items() if not any(part in name for part in UNUSED)}
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.flags.c_contiguous and array.dtype == expected[name].dtype, name
        assert array.shape == expected[name].shape and array.tobytes() == expected[name].tobytes(), name


def hub_tensors(model) -> dict[str, np.ndarray]:
    """A torch model's tensors under hub names, without the second name of a tied head."""
    tensors = weights.hub_names({name: tensor.detach().numpy() for name, tensor in model.state_dict().items()})
    if model.config.decoder.tie_word_embeddings:
        del tensors[weights.HEAD]
    return {name: np.asarray(x) for name, x in tensors.items() if not weights.IGNORED.fullmatch(name)}


# --- round trips ---


@pytest.mark.parametrize("family", FAMILIES)
def test_fixtures_come_back_bit_for_bit(family):
    checkpoint = pretrained.open_checkpoint(shared("fixtures", family))
    same(weights.dump(load(checkpoint.config, checkpoint.tensors)), checkpoint.tensors)


def tiny(deit: bool, learned: bool, tied: bool) -> TrOCRConfig:
    """The configs behind state_dict_keys.json."""
    encoder = EncoderConfig(
        model_type="deit" if deit else "vit", image_size=(32, 32), hidden_size=32, num_layers=2, num_heads=2, mlp_size=64,
        qkv_bias=deit,
    )  # fmt: skip
    decoder = DecoderConfig(
        vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, mlp_size=24, max_positions=20, learned_positions=learned,
        layernorm_embedding=learned, tie_word_embeddings=tied, cross_attention_size=32,
    )  # fmt: skip
    return TrOCRConfig(encoder, decoder)


def test_names_of_three_transformers_releases():
    variants = json.loads(shared("state_dict_keys.json").read_text())
    rng, seen = np.random.default_rng(0), 0
    for variant, layouts in variants.items():
        if variant == "note":
            continue
        deit, learned, tied = "deit" in variant, "learned" in variant, variant.endswith("_tied")
        for layout, shapes in layouts.items():
            tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
            if tied and weights.HEAD in tensors:
                tensors[weights.HEAD] = tensors[weights.EMBED]
            found = weights.dump(load(tiny(deit, learned, tied), tensors))
            expected = {name: x for name, x in weights.hub_names(tensors).items() if not (tied and name == weights.HEAD)}
            same(found, expected)
            seen += 1
            if layout == "hub_layout":
                assert found.keys() == {n for n in expected if not any(part in n for part in UNUSED)}
    assert seen == 9


ENTRIES = {"small-printed": 360, "base-printed": 478, "base-stage1": 476, "large-handwritten": 634, "large-printed": 632}


@pytest.mark.parametrize("name", ENTRIES)
def test_public_checkpoints_have_so_many_tensors(name):
    """reference.md 1.4; one less where a tied head would be listed twice. No memory is taken."""
    model = TrOCR.abstract(PRESETS[f"microsoft/trocr-{name}"])
    shapes = weights.expected_shapes(model)
    assert len(shapes) == ENTRIES[name]
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == sum(x.size for x in jax.tree.leaves(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype):
    config = random_config("C", 0)
    source = {name: x.astype(dtype) for name, x in hub_tensors(torch_model(config)).items()}
    assert weights.dtype_of(source) == jnp.dtype(dtype)
    model = load(config, source, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}
    same(weights.dump(model), source)


def test_what_is_left_out_has_no_say_in_the_dtype():
    source = {"encoder.layernorm.weight": np.zeros(1, "f2"), "encoder.pooler.dense.weight": np.zeros((1, 1), "f4")}
    assert weights.dtype_of(source) == np.float16


def test_conversion_rounds_to_nearest():
    config = random_config("A", 1)
    source = hub_tensors(torch_model(config))
    same(weights.dump(load(config, source, "bfloat16")), {n: x.astype(ml_dtypes.bfloat16) for n, x in source.items()})


@pytest.mark.parametrize("types", [("f4", "f2"), ("f8", "f8"), ("i4", "i4")])
def test_what_jax_does_not_compute_in_is_read_as_float32(types):
    """Mixed types too; whole numbers are refused by their names later."""
    assert weights.dtype_of({name: np.zeros(1, dtype) for name, dtype in zip("ab", types, strict=True)}) == np.float32


def test_put_sees_every_parameter_once():
    config, seen = random_config("B", 2), []

    def put(name, array):
        seen.append(name)
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        return jax.device_put(array, jax.devices()[3])

    model = weights.load(TrOCR.abstract(config), hub_tensors(torch_model(config)), put)
    assert sorted(seen) == sorted(weights.arrays(model)) and len(set(seen)) == len(seen)
    assert {device for leaf in jax.tree.leaves(model) for device in leaf.devices()} == {jax.devices()[3]}


# --- files that torch wrote, read without torch ---


def to_fairseq(tensors, config) -> dict[str, np.ndarray]:
    """Hub names -> the original code's (reference.md 3.3), written down here a second time so that a slip shows."""
    out, names = {}, {
        "encoder.embeddings.cls_token": "cls_token", "encoder.embeddings.distillation_token": "dist_token",
        "encoder.embeddings.position_embeddings": "pos_embed",
        "encoder.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "encoder.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "encoder.layernorm.weight": "norm.weight", "encoder.layernorm.bias": "norm.bias",
    }  # fmt: skip
    for name, x in tensors.items():
        if name in names:
            out[f"encoder.deit.{names[name]}"] = x
        elif name.startswith("decoder."):
            out[name.replace("decoder.model.decoder.", "decoder.")] = x
    for i in range(config.encoder.num_layers):
        theirs, ours = f"encoder.encoder.layer.{i}.", f"encoder.deit.blocks.{i}."
        for kind in ("weight", "bias"):
            parts = [f"{theirs}attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            if parts[0] in tensors:
                out[f"{ours}attn.qkv.{kind}"] = np.concatenate([tensors[part] for part in parts])
            out[f"{ours}attn.proj.{kind}"] = tensors[f"{theirs}attention.output.dense.{kind}"]
            out[f"{ours}norm1.{kind}"] = tensors[f"{theirs}layernorm_before.{kind}"]
            out[f"{ours}norm2.{kind}"] = tensors[f"{theirs}layernorm_after.{kind}"]
            out[f"{ours}mlp.fc1.{kind}"] = tensors[f"{theirs}intermediate.dense.{kind}"]
            out[f"{ours}mlp.fc2.{kind}"] = tensors[f"{theirs}output.dense.{kind}"]
    extra = {"decoder.version": np.array([3.0], "f4"), "encoder.deit.head.weight": np.ones((10, 4), "f4")}
    extra |= {"encoder.deit.head.bias": np.ones(10, "f4"), weights.HEAD: tensors.get(weights.HEAD, tensors[weights.EMBED])}
    if config.encoder.model_type == "deit":
        extra |= {"encoder.deit.head_dist.weight": np.ones((10, 4), "f4"), "encoder.deit.head_dist.bias": np.ones(10, "f4")}
    if not config.decoder.learned_positions:
        extra["decoder.embed_positions._float_tensor"] = np.zeros(1, "f4")
    return out | extra


READER = """
import hashlib, json, sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp
from trocr_jax import files, pretrained
from trocr_jax.checkpoints import weights
from trocr_jax.config import TrOCRConfig
from trocr_jax.model import TrOCR
digests = {}
for path, config in json.loads(sys.stdin.read()):
    checkpoint = pretrained.open_checkpoint(path, TrOCRConfig.from_hf(config) if config else None)
    model = weights.load(TrOCR.abstract(checkpoint.config, checkpoint.dtype), checkpoint.tensors)
    digest = hashlib.sha256()
    for name, x in sorted(weights.dump(model).items()):
        digest.update(f"{name} {x.shape} {x.dtype}".encode() + x.tobytes())
    digests[path] = digest.hexdigest()
assert sys.modules["torch"] is None
print(json.dumps(digests))
"""


def digest(tensors) -> str:
    out = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        out.update(f"{name} {x.shape} {x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
    return out.hexdigest()


def write_all(folder, family: str, seed: int) -> dict[str, tuple[dict | None, str]]:
    """One random model in every kind of file that torch writes: path -> (config if the file has none, digest expected)."""
    config = random_config(family, seed)
    model = torch_model(config, seed)
    state, expected = model.state_dict(), digest(hub_tensors(model))
    out: dict[str, tuple[dict | None, str]] = {}

    def directory(kind):
        path = folder / f"{family}-{seed}-{kind}"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config.to_hf()))
        out[str(path)] = (None, expected)
        return path

    torch.save(state, directory("zip") / "pytorch_model.bin")
    torch.save(state, directory("legacy") / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    names = sorted(state)
    weight_map = {name: f"pytorch_model-{1 + (i > len(names) // 2)}-of-2.bin" for i, name in enumerate(names)}
    sharded = directory("shards")
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, sharded / file)
    model.save_pretrained(directory("saved"), max_shard_size="10KB")
    tensors = {name: torch.from_numpy(x.copy()) for name, x in to_fairseq(hub_tensors(model), config).items()}
    if not config.has_projection:
        args = argparse.Namespace(arch="trocr_base", decoder_attention_heads=4, activation_fn="relu")
        for kind, content in (
            ("args.pt", {"args": args, "model": tensors, "optimizer_history": [{"num_updates": 3}]}),
            ("cfg.pt", {"args": None, "cfg": {"model": args, "task": {"data": "x"}}, "model": tensors, "extra_state": {}}),
        ):
            path = folder / f"{family}-{seed}-{kind}"
            torch.save(content, path, _use_new_zipfile_serialization=kind == "cfg.pt")
            out[str(path)] = (config.to_hf(), expected)
    return out


def test_every_file_of_torch_is_read_without_torch(tmp_path):
    written = {}
    for family in "ABC":
        for seed in range(3):
            written |= write_all(tmp_path, family, seed)
    request = json.dumps([(path, config) for path, (config, _) in written.items()])
    done = subprocess.run([sys.executable, "-c", READER], cwd=ROOT, input=request, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {path: expected for path, (_, expected) in written.items()}


# --- what a fairseq file implies ---


@pytest.mark.parametrize("name", PRESETS)
def test_fairseq_checkpoints_imply_the_published_config(name):
    """Sizes from tensors alone; the arguments stored beside a roberta2 decoder are not its own and must not matter."""
    config = PRESETS[name]
    shapes = weights.expected_shapes(TrOCR.abstract(config))
    tensors = {name: np.broadcast_to(np.float32(name == weights.HEAD), shape) for name, shape in shapes.items()}
    theirs = to_fairseq_shapes(tensors, config)
    tied = config.decoder.tie_word_embeddings
    args = {"activation_fn": "relu", "decoder_attention_heads": 7 if tied else config.decoder.num_heads}
    assert fairseq.infer_config(theirs, args) == config
    assert fairseq.infer_config(theirs, {}) == config
    found = fairseq.to_hub(theirs)
    assert {n: x.shape for n, x in found.items() if n in shapes} == shapes


def to_fairseq_shapes(tensors, config):
    """As `to_fairseq`, for arrays that take no memory."""
    small = {name: x for name, x in tensors.items() if ".layer." not in name}
    out = to_fairseq(small | {n: np.zeros(1, "f4") for n in tensors if ".layer." in n}, config)
    for name in out:
        block = name.split(".")
        if "blocks" in block:
            size, kind = config.encoder.hidden_size, block[-1]
            rows = {"qkv": 3 * size, "fc1": config.encoder.mlp_size}.get(block[-2], size)
            columns = config.encoder.mlp_size if block[-2] == "fc2" else size
            flat = kind == "bias" or "norm" in block[-2]
            out[name] = np.broadcast_to(np.float32(0), (rows,) if flat else (rows, columns))
    return out


def test_omegaconf_and_dict_arguments():
    record = pretrained.torch_files.Inert
    nodes = {"activation_fn": record("omegaconf.nodes.AnyNode", (), {"_val": "gelu"})}
    wrapped = record("omegaconf.dictconfig.DictConfig", (), {"_content": nodes})
    outer = record("omegaconf.dictconfig.DictConfig", (), {"_content": {"model": wrapped}})
    namespace = record("argparse.Namespace", (), {"activation_fn": "gelu"})
    for cfg in ({"model": {"activation_fn": "gelu"}}, {"model": namespace}, outer):
        assert fairseq.arguments({"cfg": cfg, "args": None}) == {"activation_fn": "gelu"}
    assert fairseq.arguments({"args": record("argparse.Namespace", (), {"a": 1})}) == {"a": 1}
    assert fairseq.arguments({"args": 3, "cfg": [1]}) == {}


def test_fairseq_variants_that_are_refused():
    config = random_config("C", 0)
    config = TrOCRConfig(replace(config.encoder, image_size=(32, 32), patch_size=(16, 16)), config.decoder)
    tensors = to_fairseq(hub_tensors(torch_model(config)), config)
    with pytest.raises(ConfigError, match="adaptive positions"):
        fairseq.infer_config(tensors, {"ape": True})
    del tensors["decoder.embed_tokens.weight"]
    with pytest.raises(ConfigError, match="not a TrOCR checkpoint of fairseq"):
        fairseq.infer_config(tensors, {})


@pytest.mark.parametrize("shape", [(), (14, 4)])
def test_query_key_and_value_of_fairseq_are_three_parts_of_a_whole(shape):
    """Of anything else nothing is dropped: it keeps its name, and is reported by it."""
    name = "encoder.deit.blocks.0.attn.qkv.weight"
    assert list(fairseq.to_hub({name: np.zeros(shape, "f4")})) == [name]


# --- strictness ---


def test_all_differences_in_one_error():
    config = random_config("C", 3)
    tensors = hub_tensors(torch_model(config))
    missing = ["encoder.layernorm.bias", "decoder.model.decoder.layers.0.fc1.weight"]
    for name in missing:
        del tensors[name]
    surplus = {"encoder.embeddings.mask_token": np.zeros(3, "f4"), "lm_head.weight": np.zeros((2, 2), "f4")}
    shape, kind = "decoder.model.decoder.embed_positions.weight", "decoder.model.decoder.layers.0.fc2.bias"
    tensors |= {shape: tensors[shape][1:], kind: np.zeros(tensors[kind].shape, "i4"), **surplus}
    with pytest.raises(WeightsError) as error:
        load(config, tensors)
    head, problems = str(error.value).split("differences: ")
    assert head == "the weights do not fit the model's config, 6 " and "\n" not in problems, "the command line shows one line"
    assert sorted("".join(problem.split()[:2]) for problem in problems.split("; ")) == sorted(
        [f"missing:{name}" for name in missing] + [f"surplus:{name}" for name in surplus] + [f"shape:{shape}", f"type:{kind}"]
    )


def test_nothing_fits():
    config = random_config("A", 0)
    count = len(weights.expected_shapes(TrOCR.abstract(config)))
    with pytest.raises(WeightsError, match=f"{count} differences"):
        load(config, {})


def test_an_absurd_depth_is_refused_at_once():
    config = random_config("A", 0)
    with pytest.raises(WeightsError, match="asks for 1000000 layers"):
        load(TrOCRConfig(config.encoder, replace(config.decoder, num_layers=10**6)), {})


def test_tied_heads_under_either_name():
    config = random_config("A", 4)
    tensors = hub_tensors(torch_model(config))
    both = tensors | {weights.HEAD: tensors[weights.EMBED].copy()}
    head_only = {name: x for name, x in both.items() if name != weights.EMBED}
    for given in (tensors, both, head_only):
        same(weights.dump(load(config, given)), tensors)
    with pytest.raises(WeightsError, match="though the config ties them"):
        load(config, both | {weights.HEAD: tensors[weights.EMBED] + 1})
    broken = tensors[weights.EMBED].copy()
    broken[0, 0] = np.nan
    load(config, tensors | {weights.EMBED: broken, weights.HEAD: broken.copy()})


def test_an_untied_head_is_not_made_up():
    config = random_config("C", 4)
    tensors = hub_tensors(torch_model(config))
    del tensors[weights.HEAD]
    with pytest.raises(WeightsError, match="missing: decoder.output_projection.weight"):
        load(config, tensors)


def test_a_tensor_under_two_names_is_refused():
    config = random_config("A", 0)
    live = {name: x.detach().numpy() for name, x in torch_model(config).state_dict().items()}
    with pytest.raises(WeightsError, match="holds? a tensor twice"):
        load(config, {**live, **weights.hub_names(live)})


def test_another_image_size_is_an_error():
    config = random_config("A", 5)
    tensors = hub_tensors(torch_model(config))
    height, width = config.encoder.image_size
    bigger = TrOCRConfig(replace(config.encoder, image_size=(2 * height, width)), config.decoder)
    with pytest.raises(WeightsError, match="shape: encoder.embeddings.position_embeddings"):
        load(bigger, tensors)


# --- complete directories ---

COMPANIONS = {"vocab.json": b"{}", "merges.txt": b"#", "preprocessor_config.json": b'{"resample": 2}'}


@pytest.mark.parametrize("to", ["hub", "orbax"])
@pytest.mark.parametrize("family", "ABC")
def test_saved_models_come_back(tmp_path, family, to):
    config = random_config(family, 6)
    model = load(config, hub_tensors(torch_model(config)), "bfloat16" if family == "B" else "float32")
    pretrained.save(model, tmp_path / "m", COMPANIONS, to=to)
    found = pretrained.open_checkpoint(tmp_path / "m")
    assert found.config == config and found.dtype == model.dtype
    same(weights.dump(TrOCR.from_pretrained(tmp_path / "m")), weights.dump(model))
    assert pretrained.companions(tmp_path / "m").items() >= COMPANIONS.items()
    with pytest.raises(FilesError, match="exists and is not empty"):
        pretrained.save(model, tmp_path / "m", COMPANIONS, to=to)


def test_orbax_written_from_sharded_device_arrays(tmp_path):
    """Training saves what lies on its devices; reading needs neither those devices nor their number."""
    from orbax.checkpoint import v1 as ocp

    config = random_config("C", 7)
    model = load(config, hub_tensors(torch_model(config)))
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    pretrained.save(model, tmp_path / "m", COMPANIONS, to="orbax")
    shutil.rmtree(tmp_path / "m" / "orbax")
    (tmp_path / "m" / "manifest.json").unlink()
    ocp.save(str(tmp_path / "m" / "orbax"), {n: jax.device_put(x, spread) for n, x in weights.arrays(model).items()})
    same(weights.dump(TrOCR.from_pretrained(tmp_path / "m")), weights.dump(model))


@pytest.mark.parametrize("to", ["hub", "orbax"])
def test_one_flipped_bit_is_noticed(tmp_path, to):
    config = random_config("A", 8)
    pretrained.save(load(config, hub_tensors(torch_model(config))), tmp_path / "m", COMPANIONS, to=to)
    largest = max((p for p in (tmp_path / "m").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(FilesError, match=f"{largest.name} is damaged"):
        pretrained.open_checkpoint(tmp_path / "m")


def test_a_damaged_orbax_without_manifest_is_one_line(tmp_path):
    config = random_config("A", 8)
    pretrained.save(load(config, hub_tensors(torch_model(config))), tmp_path / "m", COMPANIONS, to="orbax")
    (tmp_path / "m" / "manifest.json").unlink()
    for file in (tmp_path / "m" / "orbax").rglob("manifest.ocdbt"):
        file.write_bytes(b"x")
    with pytest.raises(FilesError, match="the Orbax checkpoint cannot be read") as error:
        pretrained.open_checkpoint(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_generation_defaults_are_kept_or_made(tmp_path):
    config = random_config("A", 9)
    model = load(config, hub_tensors(torch_model(config)))
    pretrained.save(model, tmp_path / "made", COMPANIONS)
    assert json.loads((tmp_path / "made" / "generation_config.json").read_text())["max_new_tokens"] == 40
    pretrained.save(model, tmp_path / "kept", {**COMPANIONS, "generation_config.json": b'{"num_beams": 4}'})
    assert (tmp_path / "kept" / "generation_config.json").read_bytes() == b'{"num_beams": 4}'


def test_a_directory_takes_no_other_config(tmp_path):
    directory = shared("fixtures", FAMILIES[0])
    config = pretrained.open_checkpoint(directory).config
    with pytest.raises(FilesError, match="has its own config"):
        pretrained.open_checkpoint(directory, config)


def test_a_model_of_several_dtypes_is_saved_under_the_widest_name(tmp_path):
    """A loader that follows config.json would else narrow the rest of it."""
    model = TrOCR.from_pretrained(shared("fixtures", FAMILIES[0]))
    model.decoder.embed_norm = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.decoder.embed_norm)
    pretrained.save(model, tmp_path / "m", {})
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "float32"
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    pretrained.save(model, tmp_path / "n", {})
    assert json.loads((tmp_path / "n" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_not_a_model(tmp_path):
    cases = {"no config.json": tmp_path, "pass the directory": tmp_path / "x.safetensors"}
    tensor_files.write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "x.pt")
    cases["not a TrOCR checkpoint of fairseq"] = tmp_path / "x.pt"
    for reason, path in cases.items():
        with pytest.raises(FilesError, match=reason):
            pretrained.open_checkpoint(path)
