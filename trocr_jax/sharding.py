"""One model on many devices: a mesh, where weights and batches lie on it, and reading with all of its devices at once.

    weights            how it runs                               the devices talk
    copied to all      `jax.shard_map` over "data"               never: each reads its own images and stops on its own
    cut by rules       `jax.jit` over arrays placed on the mesh  as the compiler finds necessary
    copied, by hand    `pmap_generate`, a literal `jax.pmap`     never

A mesh has two axes: images are cut over "data", weights over "model" (tensor parallel) or over "data" as well (FSDP). Which
weights are cut, and where, is given by rules outside the model: (pattern of the parameter's name, PartitionSpec), first match.
All ways give the same tokens. A batch is filled up to the mesh with rows that end at once, and what comes back has the
rows that went in.

Letters: B images, n devices, S image tokens, E their width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from . import decoding
from .buckets import bucket
from .checkpoints import weights
from .decoding import GenerateConfig, Generation
from .model import TrOCR
from .network.attention import for_one_device, plain_attention
from .network.layers import Array

DATA, MODEL = "data", "model"
Rules = Sequence[tuple[str, P]]
Rows = Array | np.ndarray
"""On a device, or still on the host: then each device is sent its own part alone."""

REPLICATED: Rules = ((r".*", P()),)
TENSOR: Rules = (
    (r".*\.(query|key|value|fc1)\.kernel", P(None, None, MODEL)),  # heads, and the MLP's width, over the devices
    (r".*\.(query|key|value|fc1)\.bias", P(None, MODEL)),
    (r".*\.(out|fc2)\.kernel", P(None, MODEL, None)),
    (r"decoder\.embed_tokens\.embedding", P(MODEL, None)),  # the vocabulary, also where the head is tied to it
    (r"decoder\.head\.kernel", P(None, MODEL)),
    (r".*", P()),
)
FSDP: Rules = (
    (r".*\.layers\..*\.kernel", P(None, DATA, None)),
    (r".*\.(kernel|embedding)", P(DATA, None)),
    (r".*", P()),
)
TENSOR_FSDP: Rules = (
    (r".*\.(query|key|value|fc1)\.kernel", P(None, DATA, MODEL)),
    (r".*\.(out|fc2)\.kernel", P(None, MODEL, DATA)),
    (r"decoder\.embed_tokens\.embedding", P(MODEL, DATA)),
    (r"decoder\.head\.kernel", P(DATA, MODEL)),
    *TENSOR,
)


def parse_mesh(text: str) -> dict[str, int]:
    """ "data=4,model=2" -> {"data": 4, "model": 2}; an axis that is not named has size 1.

    Raises:
        ValueError: anything else.
    """
    sizes = {DATA: 1, MODEL: 1}
    for part in text.split(","):
        found = re.fullmatch(rf"\s*({DATA}|{MODEL})=([1-9]\d{{0,5}})\s*", part)
        if not found:
            raise ValueError(f"a mesh is written as data=8 or data=4,model=2, not as {text!r}")
        sizes[found[1]] = int(found[2])
    return sizes


def make_mesh(sizes: str | dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The first devices as a mesh over "data" and "model".

    Args:
        sizes: as `parse_mesh` takes or returns them.
        devices: by default those of this host: reading needs no others, and a dead peer must not end it.

    Raises:
        ValueError: not a mesh, more devices than there are, or on a TPU a shape that does not fit the wires between its chips.
    """
    sizes = parse_mesh(sizes) if isinstance(sizes, str) else sizes
    shape = (sizes.get(DATA, 1), sizes.get(MODEL, 1))
    available = list(jax.local_devices() if devices is None else devices)
    if (count := shape[0] * shape[1]) > len(available):
        raise ValueError(f"the mesh data={shape[0]},model={shape[1]} needs {count} devices, but there are {len(available)}")
    try:
        return jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=available[:count])
    except (NotImplementedError, AssertionError):
        raise ValueError(
            f"the mesh data={shape[0]},model={shape[1]} does not fit how these chips are wired: use another"
        ) from None


def auto(mesh: Mesh) -> Mesh:
    """The same mesh with Auto axes: `jax.make_mesh` makes Explicit ones, and here the compiler places what no rule names.

    Raises:
        ValueError: it has no axis "data".
    """
    if DATA not in mesh.shape:
        raise ValueError(f"the mesh has no axis {DATA!r}, over which images are cut, but {mesh.axis_names}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def default_rules(mesh: Mesh) -> Rules:
    """Tensor parallel where the mesh has a model axis, else a copy on every device."""
    return TENSOR if mesh.shape.get(MODEL, 1) > 1 else REPLICATED


def sharding_of(name: str, shape: Sequence[int], mesh: Mesh, rules: Rules) -> NamedSharding:
    """Where the parameter `name` lies. A dimension that the devices do not divide stays whole, and so does one cut over
    "data" or "model" where the mesh has no such axis.

    Raises:
        ValueError: no rule matches, or one names an axis that nobody has: what is forgotten is said, not copied in silence.
    """
    spec = next((spec for pattern, spec in rules if re.fullmatch(pattern, name)), None)
    if spec is None:
        raise ValueError(f"no sharding rule matches the parameter {name}")

    if unknown := [axis for axis in spec if axis not in (None, DATA, MODEL, *mesh.axis_names)]:
        raise ValueError(f"the rule for {name} names the axis {unknown[0]!r}; the mesh has {mesh.axis_names}, one a dimension")
    if len(spec) > len(shape):
        raise ValueError(f"the rule for {name} has {len(spec)} dimensions, the parameter {len(shape)}")

    def kept(axis: str | None, size: int) -> str | None:
        return axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None

    padded = (*spec, *[None] * len(shape))
    return NamedSharding(mesh, P(*map(kept, padded, shape)))


def putter(mesh: Mesh, rules: Rules | None = None) -> weights.Put:
    """For `TrOCR.from_pretrained(put=...)`: every parameter goes to its devices at once and is never whole on one of them."""
    mesh, chosen = auto(mesh), default_rules(mesh) if rules is None else rules
    return lambda name, array: jax.device_put(array, sharding_of(name, array.shape, mesh, chosen))


def place(model: TrOCR, mesh: Mesh, rules: Rules | None = None) -> TrOCR:
    """A model, wherever it lies, placed on the mesh by the rules (`default_rules` without)."""
    put = putter(mesh, rules)
    return jax.tree_util.tree_map_with_path(lambda path, x: put(weights.name_of(path), x), model)


def rows_for(count: int, mesh: Mesh | None) -> int:
    """B that this many images are filled up to: the same power of two on each device; without a mesh there is one device."""
    n = auto(mesh).shape[DATA] if mesh else 1
    return n * bucket(-(-count // n))


def generate(
    model: TrOCR, memory: Rows, config: GenerateConfig, seeds: Rows | None = None, limits: Rows | None = None, *, mesh: Mesh
) -> Generation:
    """`decoding.generate` on a mesh: memory [B,S,E] of any B -> Generation of B rows. The model lies on the mesh (`place`)."""
    return _spread(Decode(config), model, memory, seeds, limits, mesh)


def read_pixels(
    model: TrOCR, images: Rows, config: GenerateConfig, mean: tuple[float, ...], std: tuple[float, ...],
    seeds: Rows | None = None, limits: Rows | None = None, *, mesh: Mesh,
) -> Generation:  # fmt: skip
    """`decoding.read_pixels` on a mesh: uint8 images [B,height,width,C] of any B -> Generation of B rows."""
    return _spread(Read(config, mean, std), model, images, seeds, limits, mesh)


@partial(jax.pmap, axis_name=DATA, static_broadcasted_argnums=2)
def pmap_generate(
    model: TrOCR, memory: Array, config: GenerateConfig, seeds: Array | None = None, limits: Array | None = None
) -> Generation:
    """`decoding.generate` as a literal `jax.pmap`, for code bases that are built around it.

    Every array has a leading axis n: the model's parameters repeated, memory [n,B/n,S,E], seeds and limits [n,B/n]; the result
    too. Positional arguments only, and `config` third, as pmap wants it.
    """
    model = for_one_device(model, jax.default_backend())
    return decoding.generate(model, memory, config, seeds, limits)


@dataclass(frozen=True)
class Decode:
    """`decoding.generate` for rows that are image tokens [B,S,E]. Equal ones share a compiled program."""

    config: GenerateConfig

    def __call__(self, model: TrOCR, rows: Array, seeds: Array | None, limits: Array) -> Generation:
        return decoding.generate(model, rows, self.config, seeds, limits)


@dataclass(frozen=True)
class Read:
    """`decoding.read_pixels` for rows that are uint8 images [B,height,width,C]. Equal ones share a compiled program."""

    config: GenerateConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, model: TrOCR, rows: Array, seeds: Array | None, limits: Array) -> Generation:
        return decoding.read_pixels(model, rows, self.config, self.mean, self.std, seeds, limits)


def _spread(work: Decode | Read, model: TrOCR, rows: Rows, seeds: Rows | None, limits: Rows | None, mesh: Mesh) -> Generation:
    """Fills the batch up to the mesh, runs the program that fits the weights' places, and takes the filling off again."""
    mesh, count = auto(mesh), rows.shape[0]
    total = -(-count // mesh.shape[DATA]) * mesh.shape[DATA]
    limits = np.full(count, work.config.max_new_tokens, np.int32) if limits is None else limits
    cut = NamedSharding(mesh, P(DATA))
    batch = tuple(None if x is None else jax.device_put(_fill(x, total), cut) for x in (rows, seeds, limits))
    copied = all(x.sharding.is_fully_replicated for x in jax.tree.leaves(model))
    with jax.set_mesh(mesh):  # whichever mesh the caller has set
        result = data_parallel(model, *batch, work, mesh) if copied else partitioned(model, *batch, work, mesh)
    return result if total == count else jax.tree.map(lambda x: x[:count], result)


def _fill(x: Rows, total: int) -> Rows:
    """Pads with rows of zeros to `total` rows."""
    pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
    return x if x.shape[0] == total else pad(x, [(0, total - x.shape[0]), *[(0, 0)] * (x.ndim - 1)])


@partial(jax.jit, static_argnames=("work", "mesh"))
def data_parallel(model: TrOCR, rows: Array, seeds: Array | None, limits: Array, work: Decode | Read, mesh: Mesh) -> Generation:
    """The program for copied weights: each device decodes its rows in a loop of its own."""
    model = for_one_device(model, mesh.devices.flat[0].platform)
    specs = (P(), P(DATA), P(DATA), P(DATA))
    return jax.shard_map(work, mesh=mesh, in_specs=specs, out_specs=P(DATA), check_vma=False)(model, rows, seeds, limits)


@partial(jax.jit, static_argnames=("work", "mesh"))
def partitioned(model: TrOCR, rows: Array, seeds: Array | None, limits: Array, work: Decode | Read, mesh: Mesh) -> Generation:
    """The program for cut weights: one loop for all, its arrays placed by the compiler, the result whole on every device."""
    result = work(plain_attention(model), rows, seeds, limits)
    return jax.lax.with_sharding_constraint(result, NamedSharding(mesh, P()))
