"""From pictures to token ids: each way of decoding is one compiled program, `generate`.

Letters: B images, S image tokens, E their width, R returned sequences an image, T new tokens.

Shapes are static, and a row's tokens do not depend on its neighbours: the same image gives the same tokens alone, in any
batch, in any order, with any padding. `sampling` holds greedy decoding and sampling, `beam` beam search, `loop` what they share.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from .generation.beam import beam_search
from .generation.config import GenerateConfig
from .generation.packed import Packed, model_of, unpack
from .generation.result import Generation, empty_generation
from .generation.sampling import sample
from .model import TrOCR, normalize
from .network.layers import Array
from .network.mesh_axes import refuse_explicit

__all__ = ["GenerateConfig", "Generation", "generate", "read_pixels"]


@partial(jax.jit, static_argnames=("config",))
def generate(
    model: TrOCR | Packed, memory: Array, config: GenerateConfig, seeds: Array | None = None, limits: Array | None = None
) -> Generation:
    """Decodes image tokens.

    Args:
        model: `pack`ed it is laid out for decoding once and not in every call.
        memory: `model.encode(pixels)`, [B,S,E].
        config: static; another one compiles another program.
        seeds: [B] uint32, one an image, for sampling: a row's draw depends on its own seed alone.
        limits: [B] int32, most new tokens of each row, where that is fewer than max_new_tokens; 0 for rows that only fill the
            batch up.

    Raises:
        ValueError: sampling without seeds, seeds or limits that are not one whole number an image, memory of another model,
            more tokens than the checkpoint has positions, or arrays on a mesh with Explicit axes.
    """
    model, layers = unpack(model)
    refuse_explicit(model, memory)
    seeds, limits = (None if rows is None else jnp.asarray(rows) for rows in (seeds, limits))
    if config.do_sample and seeds is None:
        raise ValueError("sampling needs seeds, one an image")
    config.check_positions(model.config.decoder.max_positions)
    _check_memory(memory, model.config.memory_size)
    _check_rows(memory.shape[0], seeds, limits)
    if memory.shape[0] == 0:
        return empty_generation(config)
    limits = _limits(memory.shape[0], limits, config.max_new_tokens)
    if config.num_beams > 1:
        return beam_search(model, layers, memory, config, limits)
    return sample(model, layers, memory, config, seeds, limits)


def _check_memory(memory: Array, width: int) -> None:
    if memory.ndim != 3 or memory.shape[-1] != width:
        raise ValueError(f"memory must be image tokens [B,S,{width}], as the model's encode gives them, not {list(memory.shape)}")


def _check_rows(images: int, seeds: Array | None, limits: Array | None) -> None:
    for name, given in (("seeds", seeds), ("limits", limits)):
        if given is not None and given.shape != (images,):
            raise ValueError(f"{name} must be one an image, [{images}], not {list(given.shape)}")
        if given is not None and not jnp.issubdtype(given.dtype, jnp.integer):  # a mask would be one token a row
            raise ValueError(f"{name} must be whole numbers, not {given.dtype}")


def _limits(images: int, limits: Array | None, most: int) -> Array:
    """[B] int32 within 0..most; compared in their own dtype, as what no int32 holds would become a negative one."""
    if limits is None:
        return jnp.full(images, most, jnp.int32)
    return jnp.clip(limits, 0, min(most, jnp.iinfo(limits.dtype).max)).astype(jnp.int32)


@partial(jax.jit, static_argnames=("config", "mean", "std"))
def read_pixels(
    model: TrOCR | Packed, images: Array, config: GenerateConfig, mean: tuple[float, ...], std: tuple[float, ...],
    seeds: Array | None = None, limits: Array | None = None,
) -> Generation:  # fmt: skip
    """uint8 images [B,height,width,C] -> Generation: normalise, encode and decode in one program."""
    return generate(model, model_of(model).encode(normalize(images, mean, std)), config, seeds, limits)
