"""A model's parameters as a flat dict {path: array}: which of them are trained and how fast, LoRA, and back into a model.

Paths are those of `weights`: "encoder.layers.mlp.fc1.kernel", layers stacked on the first axis. Rules see every layer on its own,
as "encoder.layers.3.mlp.fc1.kernel".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.checkpoints.weights import name_of
from trocr_jax.config import TrOCRConfig
from trocr_jax.model import TrOCR
from trocr_jax.network.layers import Array, Dtype, precision

Arrays = dict[str, Any]
STACK = re.compile(r"((?:encoder|decoder)\.layers)\.")
LORA_A, LORA_B = ".lora_a", ".lora_b"
_LORA = re.compile(r"\.lora_[ab]$")


def named(tree: Any) -> Arrays:
    """A tree as {path: leaf}; names survive changes of the classes that hold the arrays."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unnamed(like: Any, arrays: Mapping[str, Any]) -> Any:
    """The inverse of `named`, in the shape of another tree."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[name_of(path)], like)


def build(config: TrOCRConfig, arrays: Mapping[str, Array], dtype: Dtype = jnp.float32) -> TrOCR:
    """A model that computes in this dtype, with these parameters cast to it (also inside a compiled program)."""
    return unnamed(TrOCR.abstract(config, dtype), {name: x.astype(dtype) for name, x in arrays.items()})


def finite(tree: Any) -> Array:
    """[] bool: whether all numbers in a tree of arrays are finite."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def layer_names(name: str, layers: int) -> list[str]:
    """A stacked parameter's name for each of its layers; any other name alone."""
    return [STACK.sub(rf"\1.{i}.", name) for i in range(layers)] if STACK.match(name) else [name]


def rates(arrays: Mapping[str, Any], rules: Iterable[str], layer_decay: float = 1.0) -> dict[str, Any]:
    """How fast every parameter learns, as a factor of the learning rate: a number, or [L,1,...] for stacked layers.

    Args:
        rules: "regex=factor", the first that finds a parameter's name decides; 0 freezes.
        layer_decay: factor for every layer below the last one of its stack, and once more for what lies before the stack.

    Raises:
        ValueError: a parameter that no rule finds, a rule that finds none, no rule at all, or only rules that freeze.
    """
    parsed = [_rule(rule) for rule in rules]
    used: set[int] = set()
    depths = {name.split(".")[0]: len(x) for name, x in arrays.items() if STACK.match(name)}
    out = {}
    for name, x in arrays.items():
        out[name] = _by_layer(name, x, lambda each: _first(parsed, each, used) * layer_decay ** _below(each, depths))
    if idle := [pattern.pattern for i, (pattern, _) in enumerate(parsed) if i not in used]:
        raise ValueError(f"these learning rate rules decide about no parameter: {', '.join(idle)}")
    if not any(map(np.any, out.values())):
        raise ValueError("these learning rate rules leave nothing to train: some factor must be above 0")
    return out


def found(arrays: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """Which parameters a regex finds, a LoRA factor by its kernel's name: a bool, or [L,1,...] for stacked layers."""
    search = re.compile(pattern).search
    return {name: _by_layer(_LORA.sub("", name), x, lambda each: search(each) is not None) for name, x in arrays.items()}


def _by_layer(name: str, x: Any, value: Callable[[str], Any]) -> Any:
    """The value for the name of a parameter, or [L,1,...] for those of its layers."""
    if not STACK.match(name):
        return value(name)
    return np.reshape([value(each) for each in layer_names(name, len(x))], (-1,) + (1,) * (x.ndim - 1))


def with_lora(factors: Mapping[str, Any]) -> dict[str, Any]:
    """`rates` with those of the LoRA factors, which learn as fast as their kernel would."""
    kernels = {name: factor for name, factor in factors.items() if name.endswith("kernel")}
    return {**factors, **{name + part: factor for name, factor in kernels.items() for part in (LORA_A, LORA_B)}}


def frozen_layers(factors: Mapping[str, Any]) -> frozenset[str]:
    """The layers that do not learn in stacks of which others do, by the names that rules see."""
    stacks = {name: np.ravel(factor) for name, factor in factors.items() if np.any(factor)}
    return frozenset(layer_names(name, len(x))[i] for name, x in stacks.items() for i in np.flatnonzero(x == 0))


def without(gradient: Arrays, frozen: frozenset[str]) -> Arrays:
    """A gradient that is 0 in frozen layers, which would take their share of its norm when it is clipped."""
    return {name: _masked(name, x, frozen) for name, x in gradient.items()} if frozen else gradient


def _masked(name: str, x: Array, frozen: frozenset[str]) -> Array:
    learns = np.array([each not in frozen for each in layer_names(name, len(x))])
    return jnp.where(learns.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))


def _rule(rule: str) -> tuple[re.Pattern[str], float]:
    pattern, equals, factor = rule.rpartition("=")
    try:
        if equals and float(factor) >= 0:
            return re.compile(pattern), float(factor)
    except (ValueError, re.error):
        pass
    raise ValueError(f"the learning rate rule {rule!r} must be a regular expression, '=' and a factor of 0 or more")


def _first(rules: list[tuple[re.Pattern[str], float]], name: str, used: set[int]) -> float:
    for i, (pattern, factor) in enumerate(rules):
        if pattern.search(name):
            used.add(i)
            return factor
    raise ValueError(f"no learning rate rule matches {name}; end the list with '.*=1'")


def _below(name: str, depths: Mapping[str, int]) -> int:
    """Layers between a parameter and the end of its stack: 0 for the last layer and all that comes after the stack."""
    stack, *rest = name.split(".")
    if rest and rest[0] == "layers":
        return depths[stack] - 1 - int(rest[1])
    before = ("cls_token", "distillation_token", "position_embedding", "patch_embed", "embed_tokens", "embed_norm")
    return depths.get(stack, 0) if rest and rest[0] in before else 0


def new_lora(arrays: Mapping[str, Array], targets: str, rank: int, seed: int) -> Arrays:
    """Factors a [.., in, rank], random, and b [.., rank, out], zero, for every kernel that the regex finds (Hu et al., 2022).

    Raises:
        ValueError: it finds none, or some layers of a stacked kernel and not all.
    """
    kernels = {name: x for name, x in arrays.items() if name.endswith("kernel")}
    wanted = {name: np.asarray(layers) for name, layers in found(kernels, targets).items()}
    if partly := next((name for name, layers in wanted.items() if layers.any() and not layers.all()), None):
        raise ValueError(
            f"the LoRA targets {targets!r} find only some layers of {partly}: let them find all, and freeze others "
            "by --optimizer.rates"
        )
    names = [name for name, layers in wanted.items() if layers.all()]
    if not names:
        example = next((name for kernel, x in kernels.items() for name in layer_names(kernel, len(x))), "none at all")
        raise ValueError(f"the LoRA targets {targets!r} find no kernel that learns, as {example}")
    out: Arrays = {}
    for name, key in zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True):
        *stack, size_in, size_out = arrays[name].shape
        out[name + LORA_A] = jax.random.normal(key, (*stack, size_in, rank)) * size_in**-0.5
        out[name + LORA_B] = jnp.zeros((*stack, rank, size_out))
    return out


def merged(arrays: Mapping[str, Array], lora: Mapping[str, Array], scale: float) -> Arrays:
    """Plain parameters: kernel + scale * a b where there are factors, others as `lora` has them, if it does."""
    with precision(jnp.float32):
        return {
            name: x + scale * (lora[name + LORA_A] @ lora[name + LORA_B]) if name + LORA_A in lora else lora.get(name, x)
            for name, x in arrays.items()
        }
