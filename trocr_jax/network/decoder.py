"""The TrOCR text decoder: a post-LN transformer with cross-attention (Li et al., 2023), in the three families of the checkpoints.

Letters: B rows (images, or images x beams), T target length, P cached positions, S image tokens, E width of the image
tokens, L layers, D width, N heads, H head dim, V vocabulary.

Two ways through the same weights. Teacher forcing (`__call__`) runs all T positions at once. A decoding `step` runs one
token a row against a cache of self-attention keys and values (`kv_cache`) that lives in the loop's carry. `decoder_layer` has
a single layer of both, `step_layers` all of them as a device's steps read them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..config import DecoderConfig
from .decoder_layer import LAYER_NORM_EPS, DecoderLayer
from .kv_cache import FlatLayerCache, KVCache, LayerCache
from .layers import (
    Array,
    Dtype,
    LayerNorm,
    dropout,
    embedding,
    linear,
    matmul_few_rows,
    precision,
    scan_layers,
    split,
    stack,
)
from .mesh_axes import refuse_explicit, varying
from .step_layers import StepLayers, Unrolled

POSITION_OFFSET = 2  # learned tables keep two rows free, whatever the pad id is (fairseq)


class Decoder(nnx.Module):
    """Token ids and image tokens -> hidden states [B,T,D], and from those logits [B,T,V]."""

    def __init__(
        self, config: DecoderConfig, memory_size: int, *, pad_token_id: int = 1, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        size, init = config.hidden_size, nnx.initializers.normal(0.02)
        self.config, self.pad_token_id = config, pad_token_id
        self.embed_tokens = embedding(config.vocab_size, size, dtype=dtype, rngs=rngs)
        if config.learned_positions:
            self.position_embedding = nnx.Param(init(rngs.params(), (config.max_positions + POSITION_OFFSET, size), dtype))
        if config.layernorm_embedding:
            self.embed_norm = LayerNorm(size, LAYER_NORM_EPS, dtype=dtype)
        self.layers = stack(lambda rngs: DecoderLayer(config, memory_size, dtype=dtype, rngs=rngs), config.num_layers, rngs)
        if not config.tie_word_embeddings:
            self.head = linear(size, config.vocab_size, bias=False, dtype=dtype, rngs=rngs)

    @property
    def dtype(self) -> Dtype:
        """The dtype of the parameters and of what is computed with them."""
        return self.embed_tokens.embedding.dtype

    @property
    def first_row(self) -> int:
        """Row of the position table for the first token; a sinusoidal table counts from the one after the pad id."""
        return POSITION_OFFSET if self.config.learned_positions else self.pad_token_id + 1

    def __call__(self, ids: Array, memory: Array, *, key: Array | None = None, remat: bool = False) -> Array:
        """Teacher forcing: ids [B,T] (start token first), memory [B,S,E] -> hidden states [B,T,D]."""
        return self._run(ids, memory, key, remat)[1]

    def states(self, ids: Array, memory: Array, *, key: Array | None = None, remat: bool = False) -> tuple[Array, Array]:
        """The embeddings [B,T,D] and every layer's output [L,B,T,D], for comparing implementations layer by layer.

        Raises:
            ValueError: T is more than the positions, or arrays lie on a mesh with Explicit axes.
        """
        embedded, _, states = self._run(ids, memory, key, remat)
        return embedded, states

    def _run(self, ids: Array, memory: Array, key: Array | None, remat: bool) -> tuple[Array, Array, Array]:
        """Embeddings, last layer's output, every layer's. Whoever wants the last takes it as such: a slice of all would keep all,
        and their gradients.
        """
        if (length := ids.shape[1]) > (most := self.config.max_positions):
            raise ValueError(f"lines of {length} tokens, but this checkpoint has {most} decoder positions: leave out long lines")
        refuse_explicit(self, ids, memory)
        embed_key, layers_key = split(key, 2)
        embedded = dropout(self.embed(ids, self._rows(ids)), self.config.dropout, embed_key)

        def apply(layer: DecoderLayer, x: Array, key: Array | None) -> Array:
            return layer(x, memory, key)

        with precision(self.dtype):
            return embedded, *scan_layers(self.layers, varying(embedded, memory), apply, key=layers_key, remat=remat)

    def step_layers(self) -> StepLayers:
        """The layers as `step` uses them; made once before a loop. What a platform does not use is not computed."""
        return StepLayers.of(self.layers, None if self.config.tie_word_embeddings else self.head.kernel[...])

    def step(
        self, ids: Array, memory: Array, cache: KVCache, position: Array, layers: StepLayers | Unrolled
    ) -> tuple[Array, KVCache]:
        """One decoding step.

        Args:
            ids: [B], the token of each row at this position.
            memory: [images,S,E] with B a multiple of images: B / images rows (beams) read the same image.
            cache: the tokens before; donated or carried, never copied.
            position: 0-based, one for all rows [] or one a row [B].
            layers: `step_layers()` from outside of the loop, or the part of these that one device reads.

        Returns:
            Logits [B,V] and the cache with this position filled.
        """
        row = position + self.first_row
        if not self.config.learned_positions:
            row = jnp.where(ids == self.pad_token_id, self.pad_token_id, row)
        with precision(self.dtype):
            x, cache = layers(self.embed(ids, row), memory, cache, position)
            return self._step_logits(x, layers.head), cache

    def _step_logits(self, hidden: Array, head: Array | None) -> Array:
        """`logits` of [B,D]; a CPU puts the table [V,D] on the left of the product, see `matmul_few_rows`."""
        table = self.embed_tokens.embedding[...] if self.config.tie_word_embeddings else head
        if table is None:
            return self.logits(hidden)
        return jax.lax.platform_dependent(hidden, table, cpu=matmul_few_rows, default=lambda hidden, _: self.logits(hidden))

    def embed(self, ids: Array, rows: Array) -> Array:
        """Token embedding at ids plus position table at rows, both of shape [...] -> [...,D]."""
        x = self.embed_tokens(ids)
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        x = x + self._position_table(x.dtype)[rows]
        return self.embed_norm(x) if self.config.layernorm_embedding else x

    def logits(self, hidden: Array) -> Array:
        """[...,D] -> [...,V]"""
        with precision(self.dtype):
            return self.embed_tokens.attend(hidden) if self.config.tie_word_embeddings else self.head(hidden)

    def init_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for this many rows and positions."""
        c, kind = self.config, FlatLayerCache if self.layers.self_attention.fused else LayerCache
        size = c.hidden_size // c.num_heads
        return KVCache(tuple(kind.empty(rows, c.num_heads, length, size, self.dtype) for _ in range(c.num_layers)))

    def _rows(self, ids: Array) -> Array:
        """Position rows of ids [B,T]: learned tables count every token, the sinusoidal one skips padding (as the reference)."""
        if self.config.learned_positions:
            return jnp.arange(ids.shape[1]) + self.first_row
        real = (ids != self.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.pad_token_id

    def _position_table(self, dtype: Any) -> Array:
        if self.config.learned_positions:
            return self.position_embedding[...]
        return jnp.asarray(self.sinusoids(), dtype)

    def sinusoids(self) -> np.ndarray:
        """The position table of a decoder that learns none."""
        return sinusoidal_table(self.first_row + self.config.max_positions, self.config.hidden_size, self.pad_token_id)


def sinusoidal_table(rows: int, size: int, pad_token_id: int) -> np.ndarray:
    """[rows, size] float32: sines in the first half, cosines in the second, the pad row zero (fairseq's, not Vaswani's, layout).

    Computed in float32 in the reference's order of operations: float64 differs by up to 7e-5.
    """
    half = size // 2
    rate = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    phase = np.arange(rows, dtype=np.float32)[:, None] * rate[None]
    table = np.concatenate([np.sin(phase), np.cos(phase), np.zeros((rows, size % 2), np.float32)], axis=1)
    table[pad_token_id] = 0.0
    return table
