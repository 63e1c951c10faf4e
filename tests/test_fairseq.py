"""Fairseq files that are not as fairseq writes them: read quickly, or refused in the module's own words."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from trocr_jax.checkpoints import fairseq
from trocr_jax.checkpoints.torch_files import Inert
from trocr_jax.config import ConfigError

SHAPES = {
    "encoder.deit.cls_token": (1, 1, 64), "encoder.deit.pos_embed": (1, 5, 64),
    "encoder.deit.patch_embed.proj.weight": (64, 3, 16, 16), "encoder.deit.blocks.0.mlp.fc1.weight": (128, 64),
    "decoder.embed_tokens.weight": (50, 64), "decoder.layers.0.fc1.weight": (128, 64),
}  # fmt: skip
TENSORS = {name: np.zeros(shape, "f4") for name, shape in SHAPES.items()}

READER = """
import dataclasses, json, sys
from trocr_jax.checkpoints import fairseq, torch_files
content = torch_files.load(sys.argv[1])
tensors = torch_files.state_dict(content, sys.argv[1])
print(json.dumps(dataclasses.asdict(fairseq.infer_config(tensors, fairseq.arguments(content)))))
"""


def read(path) -> dict:
    """In a process of its own, which can be stopped if it does not end."""
    command = [sys.executable, "-c", READER, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shared_nodes(depth: int) -> dict:
    """Every level holds the next one twice: as many paths as 2 to the depth, in a file of 2 KB."""
    node: dict = {"_val": "gelu"}
    for _ in range(depth):
        node = {"_content": {"a": node, "b": node}}
    return node


def in_itself() -> dict:
    node: dict = {"_content": {"activation_fn": {"_val": "gelu"}}}
    node["_content"]["model"] = node
    return node


@pytest.mark.parametrize("make", [lambda: shared_nodes(40), in_itself], ids=["shared", "in itself"])
@pytest.mark.parametrize("place", ["args", "cfg"])
def test_knotted_arguments_are_read_at_once(tmp_path, make, place):
    tensors = {name: torch.from_numpy(x) for name, x in TENSORS.items()}
    torch.save({place: make(), "model": tensors}, tmp_path / "x.pt")
    found = read(tmp_path / "x.pt")
    assert found["encoder"]["image_size"] == [32, 32] and found["decoder"]["vocab_size"] == 50
    assert found["decoder"]["activation"] == ("gelu" if make is in_itself else "relu")


def test_values_are_taken_out_of_their_nodes():
    node = Inert("omegaconf.nodes.AnyNode", (), {"_val": 8})
    model = Inert("omegaconf.dictconfig.DictConfig", (), {"_content": {"decoder_attention_heads": node, "plain": 3}})
    outer = Inert("omegaconf.dictconfig.DictConfig", (), {"_content": {"model": model}})
    assert fairseq.arguments({"cfg": outer}) == {"decoder_attention_heads": 8, "plain": 3}


def test_what_fairseq_says_it_was_trained_with_goes_before_what_it_was_called_with():
    """Newer files hold both; `args` is then what older code left there."""
    assert fairseq.arguments({"cfg": {"model": {"a": 1}}, "args": {"a": 2}}) == {"a": 1}


def test_arguments_fill_in_what_tensors_cannot_show():
    args = {"no_scale_embedding": True, "max_target_positions": 512, "decoder_attention_heads": 4, "activation_fn": "gelu"}
    found = fairseq.infer_config(TENSORS, args).decoder
    assert (found.scale_embedding, found.max_positions, found.num_heads, found.activation) == (False, 512, 4, "gelu")
    plain = fairseq.infer_config(TENSORS, {}).decoder
    assert (plain.scale_embedding, plain.max_positions, plain.num_heads, plain.activation) == (True, 1024, 1, "relu")


@pytest.mark.parametrize("value", ["4", 4.0, True, -4, 0, None])
def test_an_argument_that_is_no_number_counts_as_absent(value):
    args = {"decoder_attention_heads": value, "max_target_positions": value}
    assert fairseq.infer_config(TENSORS, args) == fairseq.infer_config(TENSORS, {})


def test_patches_may_be_oblong_and_grey_and_images_may_not():
    patch = {"encoder.deit.patch_embed.proj.weight": np.zeros((64, 1, 16, 8), "f4")}
    found = fairseq.infer_config(TENSORS | patch, {}).encoder
    assert (found.image_size, found.patch_size, found.num_channels) == ((32, 16), (16, 8), 1)
    with pytest.raises(ConfigError, match="oblong images are not supported"):
        fairseq.infer_config({**TENSORS, "encoder.deit.pos_embed": np.zeros((1, 7, 64), "f4")}, {})


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 64), (1, 0, 64)])
@pytest.mark.parametrize("name", SHAPES)
def test_tensors_of_other_shapes_give_a_config_or_its_error(name, shape):
    """What does not fit the config that comes out is told by `weights.load`."""
    try:
        fairseq.infer_config({**TENSORS, name: np.zeros(shape, "f4")}, {})
    except ConfigError as error:
        assert str(error).startswith(("not a TrOCR checkpoint of fairseq", "encoder.", "decoder.", "fairseq encoders"))
