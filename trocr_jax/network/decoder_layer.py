"""One layer of the decoder, both ways through the same weights: teacher forcing, and one token a row against a cache.

Letters: B rows (images, or images x beams), T target length, P cached positions, S image tokens, E width of the image
tokens, L layers, D width, N heads, H head dim, K rows an image.

Cross-attention in a step keeps no keys and values: with `scores = q W_k . x` and `out = (weights . x) W_v` the head's
projections move to the query and after the sum, so that all layers, heads and beams read the same image tokens [images,S,E]
(the key bias shifts all scores of a query alike and leaves the softmax as it is). See docs/performance.md for what that buys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from ..config import DecoderConfig
from . import fused
from .attention import Attention
from .kv_cache import LayerCache
from .layers import Array, Dtype, LayerNorm, Mlp, dropout, softmax_dtype, split, transpose_kernels

LAYER_NORM_EPS = 1e-5  # fixed in the reference; no config names it


class DecoderLayer(nnx.Module):
    """x = norm(x + self_attention(x)); x = norm(x + cross_attention(x, memory)); x = norm(x + mlp(x))."""

    def __init__(self, config: DecoderConfig, memory_size: int, *, dtype: Dtype, rngs: nnx.Rngs):
        size, kwargs = config.hidden_size, {"dtype": dtype, "rngs": rngs}
        self.dropout = config.dropout
        self.self_attention = Attention(size, config.num_heads, dropout=config.attention_dropout, **kwargs)
        self.self_attention_norm = LayerNorm(size, LAYER_NORM_EPS, dtype=dtype)
        self.cross_attention = Attention(
            size, config.num_heads, memory_size=memory_size, dropout=config.attention_dropout, **kwargs
        )
        self.cross_attention_norm = LayerNorm(size, LAYER_NORM_EPS, dtype=dtype)
        self.mlp = Mlp(size, config.mlp_size, config.activation, dropout=config.activation_dropout, **kwargs)
        self.mlp_norm = LayerNorm(size, LAYER_NORM_EPS, dtype=dtype)

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
        layer: the layer without the key and value projections of its cross-attention.
        key: [N,E,H], the cross-attention's key kernel by heads.
        value: [N,H,E], its value kernel by heads.
        value_bias: [D], or None without one.
    """

    layer: DecoderLayer
    key: Array
    value: Array
    value_bias: Array | None

    @classmethod
    def of(cls, layer: DecoderLayer) -> StepLayer:
        """Lays out one layer."""
        layer = jax.tree.map(lambda parameter: parameter, layer)
        attention = layer.cross_attention
        E, N = attention.key.kernel.shape[0], attention.num_heads
        key, value = (m.kernel[...].reshape(E, N, -1) for m in (attention.key, attention.value))
        bias = attention.value.bias
        del attention.key, attention.value
        for name in ("self_attention_norm", "cross_attention_norm", "mlp_norm"):  # a TPU would convert them at every step
            setattr(layer, name, getattr(layer, name).widened())
        return cls(layer, key.transpose(1, 0, 2), value.transpose(1, 2, 0), None if bias is None else bias[...])

    def transposed(self) -> StepLayer:
        """The layer with transposed kernels, for `matmul_few_rows`."""
        return replace(self, layer=transpose_kernels(self.layer))

    def __call__(self, x: Array, memory: Array, cache: LayerCache, position: Array) -> tuple[Array, LayerCache]:
        """One token a row: x [B,D], memory [images,S,E], its cache written at position -> [B,D] and the cache."""
        layer, attention = self.layer, self.layer.self_attention
        query, key, value = (attention.heads(project(x)) for project in (attention.query, attention.key, attention.value))
        cache = cache.written(key, value, position)
        y = cache.attend(query, position)
        x = layer.self_attention_norm(x + attention.out(y.reshape(x.shape)))
        x = layer.cross_attention_norm(x + self._attend_to_image(x, memory))
        return layer.mlp_norm(x + layer.mlp(x)), cache

    def _attend_to_image(self, x: Array, memory: Array) -> Array:
        """Cross-attention of x [images*K,D] straight on the image tokens [images,S,E], K rows an image -> [images*K,D]."""
        attention, (B, D), (images, _, E) = self.layer.cross_attention, x.shape, memory.shape
        query = attention.heads(attention.query(x)) * jnp.asarray(self.key.shape[-1] ** -0.5, x.dtype)
        query = jnp.einsum("neh,bnh->neb", self.key, query).transpose(2, 0, 1).reshape(images, -1, E)
        context = self._context(query, memory).reshape(B, -1, E)
        value = jnp.einsum("nhe,bne->nhb", self.value, context).transpose(2, 0, 1).reshape(B, D)
        return attention.out(value if self.value_bias is None else value + self.value_bias)

    def _context(self, query: Array, memory: Array) -> Array:
        """Scaled queries [images,K*N,E] over image tokens [images,S,E] -> weighted sums of these [images,K*N,E]."""
        if self.layer.cross_attention.fused and fused.fits_tokens(query, memory):
            return fused.attend_to_tokens(query, memory)
        scores = jnp.einsum("ise,iqe->isq", memory, query, preferred_element_type=softmax_dtype(query))
        return jnp.einsum("isq,ise->iqe", jax.nn.softmax(scores, axis=1).astype(query.dtype), memory)
