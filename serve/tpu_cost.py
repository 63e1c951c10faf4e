"""How long reading takes, from the compiler's cost of its parts: a loop's body is counted once, so each part is compiled alone.

    a batch of B lines  =  embed + L encoder layers + T x (L decoder layers + head)

Letters: B images a chip, S image tokens, E their width, D the decoder's width, P places of the cache, T tokens of a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from trocr_jax.ahead_of_time import alone, cost, unstacked
from trocr_jax.chips import Chip, Cost
from trocr_jax.generation.loop import whole_chunks, widths
from trocr_jax.model import TrOCR, normalize
from trocr_jax.network.decoder_layer import StepLayer

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Workload:
    """B images, the tokens of their lines, and the places for a line's most tokens."""

    images: int
    tokens: int
    places: int


def reading_cost(mesh: Mesh, model: TrOCR, work: Workload, chip: Chip, engine: bool) -> Cost:
    """A batch on one chip. In the engine every row has a position of its own, which makes its writes scatters."""
    if not engine:  # whose cache is as wide as all of its rows may need
        wide = (width for width in widths(whole_chunks(work.places)) if width >= work.tokens)
        work = replace(work, places=next(wide, work.places))
    parts = parts_of(model, work, engine)
    donate = {"decoder layer": (1,)}  # its carry
    costs = {name: cost(alone(part, shapes, mesh, donate.get(name, ())), chip) for name, (part, shapes) in parts.items()}
    encoder, decoder = model.config.encoder.num_layers, model.config.decoder.num_layers
    step = costs["decoder layer"] * decoder + costs["head"]
    return costs["embed"] + costs["encoder layer"] * encoder + step * work.tokens


def parts_of(model: TrOCR, work: Workload, engine: bool) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """name -> (function, shapes of its arguments)."""
    c, B, dtype = model.config, work.images, model.dtype
    E, D, P = c.encoder.hidden_size, c.decoder.hidden_size, work.places
    shape = jax.ShapeDtypeStruct
    images = shape((B, *c.encoder.image_size, 3), jnp.uint8)
    tokens, memory = shape((B, c.encoder.num_tokens, E), dtype), shape((B, c.encoder.num_tokens, c.memory_size), dtype)
    x, position = shape((B, D), dtype), shape((B,) if engine else (), jnp.int32)
    cache: Any = jax.tree.map(lambda x: shape((1, *x.shape[1:]), x.dtype), jax.eval_shape(lambda: model.decoder.init_cache(B, P)))
    layer = jax.eval_shape(StepLayer.of, unstacked(model.decoder.layers))

    def embed(model: TrOCR, images: jax.Array) -> jax.Array:
        return model.encoder.embed(normalize(images, HALF, HALF).astype(dtype))

    def decode(layer: StepLayer, carry: Any, memory: jax.Array, position: jax.Array) -> Any:
        return layer(carry[0], memory, carry[1], jnp.int32(0), position)

    def head(model: TrOCR, x: jax.Array) -> Any:
        scores = model.decoder.logits(x).astype(jnp.float32)
        token = jnp.argmax(scores, axis=-1)
        return token, jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), token[:, None], axis=1)

    return {
        "embed": (embed, (model, images)),
        "encoder layer": (lambda layer, x: layer(x), (unstacked(model.encoder.layers), tokens)),
        "decoder layer": (decode, (layer, (x, cache), memory, position)),
        "head": (head, (model, x)),
    }
