"""The TrOCR text decoder: a post-LN transformer with cross-attention (Li et al., 2023), in the three families of the checkpoints.

Letters: B rows (images, or images x beams), T target length, P cached positions, S image tokens, E width of the image
tokens, L layers, D width, N heads, H head dim, K rows an image, V vocabulary.

Two ways through the same weights. Teacher forcing (`__call__`) runs all T positions at once. A decoding `step` runs one
token a row against a cache of self-attention keys and values [L,B,N,P,H] that lives in the loop's carry.
Cross-attention in a step keeps no keys and values: with `scores = q W_k . x` and `out = (weights . x) W_v` the head's
projections move to the query and behind the sum, so that all layers, heads and beams read the same image tokens [images,S,E]
(the key bias shifts all scores of a query alike and leaves the softmax as it is). See docs/performance.md for what that buys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .config import DecoderConfig
from .layers import Array, Attention, Dtype, Mlp, dropout, layer_norm, linear, scan_layers, softmax_dtype, split, stack

LAYER_NORM_EPS = 1e-5  # fixed in the reference; no config names it
POSITION_OFFSET = 2  # both tables count from row 2: rows up to the pad id are kept free (fairseq)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Self-attention keys and values of the tokens decoded so far.

    Attributes:
        keys: [L,B,N,P,H], heads before positions: the order that a step multiplies them in, or a CPU would turn all of it round.
        values: [L,B,N,P,H]
    """

    keys: Array
    values: Array

    def rows(self, indices: Array) -> KVCache:
        """The cache of rows [B'] picked by index: beams that swap places."""
        return KVCache(self.keys[:, indices], self.values[:, indices])


class DecoderLayer(nnx.Module):
    """x = norm(x + self_attention(x)); x = norm(x + cross_attention(x, memory)); x = norm(x + mlp(x))."""

    def __init__(self, config: DecoderConfig, memory_size: int, *, dtype: Dtype, rngs: nnx.Rngs):
        size, kwargs = config.hidden_size, {"dtype": dtype, "rngs": rngs}
        self.dropout = config.dropout
        self.self_attention = Attention(size, config.num_heads, dropout=config.attention_dropout, **kwargs)
        self.self_attention_norm = layer_norm(size, LAYER_NORM_EPS, **kwargs)
        self.cross_attention = Attention(
            size, config.num_heads, memory_size=memory_size, dropout=config.attention_dropout, **kwargs
        )
        self.cross_attention_norm = layer_norm(size, LAYER_NORM_EPS, **kwargs)
        self.mlp = Mlp(size, config.mlp_size, config.activation, dropout=config.activation_dropout, **kwargs)
        self.mlp_norm = layer_norm(size, LAYER_NORM_EPS, **kwargs)

    def __call__(self, x: Array, memory: Array, key: Array | None = None) -> Array:
        """Teacher forcing: x [B,T,D] under a causal mask, memory [B,S,E] -> [B,T,D]."""
        keys = split(key, 6)
        y = self.self_attention(x, causal=True, key=keys[0])
        x = self.self_attention_norm(x + dropout(y, self.dropout, keys[1]))
        y = self.cross_attention(x, memory, key=keys[2])
        x = self.cross_attention_norm(x + dropout(y, self.dropout, keys[3]))
        return self.mlp_norm(x + dropout(self.mlp(x, key=keys[4]), self.dropout, keys[5]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepLayer:
    """A layer laid out for decoding steps, once before the loop: laid out inside, a CPU would copy it at every step.

    Attributes:
        layer: as it is.
        key: [N,E,H], the cross-attention's key kernel by heads.
        value: [N,H,E], its value kernel by heads.
    """

    layer: DecoderLayer
    key: Array
    value: Array

    @classmethod
    def of(cls, layer: DecoderLayer) -> StepLayer:
        """Of one layer; under `jax.vmap` of stacked ones."""
        attention = layer.cross_attention
        E, N = attention.key.kernel.shape[0], attention.num_heads
        key, value = (m.kernel[...].reshape(E, N, -1) for m in (attention.key, attention.value))
        return cls(layer, key.transpose(1, 0, 2), value.transpose(1, 2, 0))

    def __call__(self, x: Array, memory: Array, cache: KVCache, index: Array, position: Array) -> tuple[Array, KVCache]:
        """One token a row: x [B,D], memory [images,S,E], the cache written at [index, :, position] -> [B,D] and the cache."""
        layer, attention = self.layer, self.layer.self_attention
        key, value = attention.heads(attention.key(x)), attention.heads(attention.value(x))
        cache = KVCache(_write(cache.keys, key, index, position), _write(cache.values, value, index, position))
        y = _attend_to_cache(attention.heads(attention.query(x)), cache.keys[index], cache.values[index], position)
        x = layer.self_attention_norm(x + attention.out(y.reshape(x.shape)))
        x = layer.cross_attention_norm(x + self._attend_to_image(x, memory))
        return layer.mlp_norm(x + layer.mlp(x)), cache

    def _attend_to_image(self, x: Array, memory: Array) -> Array:
        """Cross-attention of x [images*K,D] straight on the image tokens [images,S,E], K rows an image -> [images*K,D]."""
        attention, (B, D), (images, _, E) = self.layer.cross_attention, x.shape, memory.shape
        query = attention.heads(attention.query(x)) * jnp.asarray(self.key.shape[-1] ** -0.5, x.dtype)
        query = jnp.einsum("neh,bnh->neb", self.key, query).transpose(2, 0, 1).reshape(images, -1, E)
        scores = jnp.einsum("ise,iqe->isq", memory, query, preferred_element_type=softmax_dtype(x))
        weights = jax.nn.softmax(scores, axis=1).astype(x.dtype)
        context = jnp.einsum("isq,ise->iqe", weights, memory).reshape(B, -1, E)
        value = jnp.einsum("nhe,bne->nhb", self.value, context).transpose(2, 0, 1).reshape(B, D)
        bias = attention.value.bias
        return attention.out(value if bias is None else value + bias[...])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepLayers:
    """All layers for decoding steps: stacked for a scan, and one by one for a CPU, which copies what a scan slices."""

    stacked: StepLayer
    single: list[StepLayer]


def _write(cache: Array, new: Array, layer: Array, position: Array) -> Array:
    """Puts new [B,N,H] at cache[layer, :, :, position]; position is one for all rows, or one a row [B] (the engine's slots)."""
    if position.ndim:
        return cache.at[layer, jnp.arange(new.shape[0]), :, position].set(new)
    zero = jnp.zeros((), position.dtype)
    return jax.lax.dynamic_update_slice(cache, new[None, :, :, None], (layer.astype(position.dtype), zero, zero, position, zero))


def _attend_to_cache(query: Array, keys: Array, values: Array, position: Array) -> Array:
    """Queries [B,N,H] against cached positions 0..position, [B,N,P,H] each -> [B,N,H]."""
    scores = jnp.einsum("bnh,bnph->bnp", query, keys, preferred_element_type=softmax_dtype(query)) * query.shape[-1] ** -0.5
    seen = jnp.arange(keys.shape[2]) <= position[..., None]
    weights = jax.nn.softmax(jnp.where(jnp.atleast_2d(seen)[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnp,bnph->bnh", weights.astype(values.dtype), values)


class Decoder(nnx.Module):
    """Token ids and image tokens -> hidden states [B,T,D], and from those logits [B,T,V]."""

    def __init__(
        self, config: DecoderConfig, memory_size: int, *, pad_token_id: int = 1, dtype: Dtype = jnp.float32, rngs: nnx.Rngs
    ):
        size, init = config.hidden_size, nnx.initializers.normal(0.02)
        self.config, self.pad_token_id = config, pad_token_id
        self.embed_tokens = nnx.Embed(config.vocab_size, size, embedding_init=init, dtype=dtype, param_dtype=dtype, rngs=rngs)
        if config.learned_positions:
            self.position_embedding = nnx.Param(init(rngs.params(), (config.max_positions + POSITION_OFFSET, size), dtype))
        if config.layernorm_embedding:
            self.embed_norm = layer_norm(size, LAYER_NORM_EPS, dtype=dtype, rngs=rngs)
        self.layers = stack(lambda rngs: DecoderLayer(config, memory_size, dtype=dtype, rngs=rngs), config.num_layers, rngs)
        if not config.tie_word_embeddings:
            self.head = linear(size, config.vocab_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, ids: Array, memory: Array, *, key: Array | None = None, remat: bool = False) -> Array:
        """Teacher forcing: ids [B,T] (start token first), memory [B,S,E] -> hidden states [B,T,D]."""
        return self.states(ids, memory, key=key, remat=remat)[1][-1]

    def states(self, ids: Array, memory: Array, *, key: Array | None = None, remat: bool = False) -> tuple[Array, Array]:
        """The embeddings [B,T,D] and every layer's output [L,B,T,D], for comparing implementations layer by layer."""
        embed_key, layers_key = split(key, 2)
        embedded = dropout(self.embed(ids, self._rows(ids)), self.config.dropout, embed_key)

        def apply(layer: DecoderLayer, x: Array, key: Array | None) -> Array:
            return layer(x, memory, key)

        return embedded, scan_layers(self.layers, embedded, apply, key=layers_key, remat=remat)[1]

    def step_layers(self) -> StepLayers:
        """The layers as `step` uses them; made once before a loop. What a platform does not use is not computed."""
        stacked = jax.vmap(StepLayer.of)(self.layers)
        single = [jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(self.config.num_layers)]
        return StepLayers(stacked, single)

    def step(
        self, ids: Array, memory: Array, cache: KVCache, position: Array, layers: StepLayers | None = None
    ) -> tuple[Array, KVCache]:
        """One decoding step.

        Args:
            ids: [B], the token of each row at this position.
            memory: [images,S,E] with B a multiple of images: B / images rows (beams) read the same image.
            cache: the tokens before; donated or carried, never copied.
            position: 0-based, one for all rows [] or one a row [B].
            layers: `step_layers()` from outside of the loop.

        Returns:
            Hidden states [B,D] and the cache with this position filled.
        """
        row = position + POSITION_OFFSET
        if not self.config.learned_positions:
            row = jnp.where(ids == self.pad_token_id, self.pad_token_id, row)
        x = self.embed(ids, row)
        ready = layers or self.step_layers()

        def unrolled(x: Array, cache: KVCache) -> tuple[Array, KVCache]:
            for index, layer in enumerate(ready.single):
                x, cache = layer(x, memory, cache, jnp.int32(index), position)
            return x, cache

        def scanned(x: Array, cache: KVCache) -> tuple[Array, KVCache]:
            def body(carry: tuple[Array, KVCache], xs: tuple[StepLayer, Array]) -> tuple[tuple[Array, KVCache], None]:
                return xs[0](carry[0], memory, carry[1], xs[1], position), None

            return jax.lax.scan(body, (x, cache), (ready.stacked, jnp.arange(self.config.num_layers)))[0]

        return jax.lax.platform_dependent(x, cache, cpu=unrolled, default=scanned)

    def embed(self, ids: Array, rows: Array) -> Array:
        """Token embedding at ids plus position table at rows, both of shape [...] -> [...,D]."""
        x = self.embed_tokens(ids)
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        x = x + self._position_table(x.dtype)[rows]
        return self.embed_norm(x) if self.config.layernorm_embedding else x

    def logits(self, hidden: Array) -> Array:
        """[...,D] -> [...,V]"""
        return self.embed_tokens.attend(hidden) if self.config.tie_word_embeddings else self.head(hidden)

    def init_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for so many rows and positions."""
        c = self.config
        shape = (c.num_layers, rows, c.num_heads, length, c.hidden_size // c.num_heads)
        dtype = self.embed_tokens.embedding.dtype
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def _rows(self, ids: Array) -> Array:
        """Position rows of ids [B,T]: learned tables count every token, the sinusoidal one skips padding (as the reference)."""
        if self.config.learned_positions:
            return jnp.arange(ids.shape[1]) + POSITION_OFFSET
        real = (ids != self.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.pad_token_id

    def _position_table(self, dtype: Any) -> Array:
        if self.config.learned_positions:
            return self.position_embedding[...]
        rows = self.config.max_positions + self.pad_token_id + 1
        return jnp.asarray(sinusoidal_table(rows, self.config.hidden_size, self.pad_token_id), dtype)


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
