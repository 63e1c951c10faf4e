"""The image encoder: ViT (Dosovitskiy et al., 2021) or DeiT with its distillation token (Touvron et al., 2021), pre-LN.

Letters: B batch, S image tokens (special tokens first, then patches row by row), D width, N heads, H head dim.
The final LayerNorm's output over all S tokens, special ones included, is what the decoder reads; there is no pooler.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..config import EncoderConfig, Size
from .attention import Attention
from .layers import Array, Dtype, LayerNorm, Mlp, dropout, linear, precision, scan_layers, split, stack


class EncoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: EncoderConfig, *, dtype: Dtype, rngs: nnx.Rngs):
        size, eps = config.hidden_size, config.layer_norm_eps
        self.dropout = config.dropout
        self.norm1 = LayerNorm(size, eps, dtype=dtype)
        self.attention = Attention(
            size, config.num_heads, qkv_bias=config.qkv_bias, dropout=config.attention_dropout, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(size, eps, dtype=dtype)
        self.mlp = Mlp(size, config.mlp_size, config.activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """[B,S,D] -> [B,S,D]"""
        if key is None and x.shape[0] > 1 and x.shape[1] >= TOKENS_APART:
            return jax.lax.platform_dependent(self, x, cpu=_image_by_image, default=EncoderLayer.together)
        return self.together(x, key)

    def together(self, x: Array, key: Array | None = None) -> Array:
        """All images at once, [B,S,D] -> [B,S,D]"""
        attention_key, key1, key2 = split(key, 3)
        x = x + dropout(self.attention(self.norm1(x), key=attention_key), self.dropout, key1)
        return x + dropout(self.mlp(self.norm2(x)), self.dropout, key2)


TOKENS_APART = 512
"""Image tokens from which a CPU takes the images one by one, as those of one fill its cores and what a layer makes of them stays
in its cache. Not where there is a key: the gradients of training would be added up image by image.
"""


def _image_by_image(layer: EncoderLayer, x: Array) -> Array:
    return jax.lax.map(lambda image: layer.together(image[None])[0], x)


class Encoder(nnx.Module):
    """Image [B,height,width,C] -> image tokens [B,S,D]."""

    def __init__(self, config: EncoderConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs):
        size, (h, w) = config.hidden_size, config.patch_size
        init = nnx.initializers.normal(0.02)
        self.config = config
        self.cls_token = nnx.Param(init(rngs.params(), (size,), dtype))
        if config.model_type == "deit":
            self.distillation_token = nnx.Param(init(rngs.params(), (size,), dtype))
        self.position_embedding = nnx.Param(init(rngs.params(), (config.num_tokens, size), dtype))
        self.patch_embed = linear(h * w * config.num_channels, size, dtype=dtype, rngs=rngs)
        self.layers = stack(lambda rngs: EncoderLayer(config, dtype=dtype, rngs=rngs), config.num_layers, rngs)
        self.norm = LayerNorm(size, config.layer_norm_eps, dtype=dtype)

    def __call__(self, pixels: Array, *, key: Array | None = None, remat: bool = False) -> Array:
        """Normalised pixels [B,height,width,C] -> [B,S,D]. A size other than the config's interpolates the positions."""
        embed_key, layers_key = split(key, 2)
        with precision(self.position_embedding.dtype):
            x = dropout(self.embed(pixels), self.config.dropout, embed_key)
            x, _ = scan_layers(self.layers, x, EncoderLayer.__call__, key=layers_key, remat=remat)
        return self.norm(x)

    def embed(self, pixels: Array) -> Array:
        """Patches, special tokens and positions: [B,height,width,C] -> [B,S,D].

        Raises:
            ValueError: pixels of another shape, or an image that is no multiple of the patch.
        """
        channels = self.config.num_channels
        if pixels.ndim != 4 or pixels.shape[-1] != channels:
            raise ValueError(f"pixels must have the shape [B,height,width,{channels}], not {list(pixels.shape)}")
        patches = self.patch_embed(patchify(pixels, self.config.patch_size))
        B, _, D = patches.shape
        special = [self.cls_token, self.distillation_token] if self.config.model_type == "deit" else [self.cls_token]
        tokens = [jnp.broadcast_to(token[...], (B, 1, D)) for token in special]
        return jnp.concatenate([*tokens, patches], axis=1) + self.positions((pixels.shape[1], pixels.shape[2]))

    def positions(self, image_size: Size) -> Array:
        """Position embedding [S,D] for an image of this size, interpolated when it is not the trained one."""
        table = self.position_embedding[...]
        (h, w), count = self.config.patch_size, self.config.num_special_tokens
        grid = (image_size[0] // h, image_size[1] // w)
        if grid == self.config.grid:
            return table
        return jnp.concatenate([table[:count], interpolate_grid(table[count:], self.config.grid, grid)])


def patchify(pixels: Array, patch_size: Size) -> Array:
    """[B,height,width,C] -> [B,patches,h*w*C], patches row by row. Equal to a strided convolution, as one matrix product.

    Raises:
        ValueError: the image is no multiple of the patch.
    """
    B, height, width, C = pixels.shape
    h, w = patch_size
    if height % h or width % w:
        raise ValueError(f"an image of {height}x{width} is no multiple of the {h}x{w} patch")
    x = pixels.reshape(B, height // h, h, width // w, w, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (height // h) * (width // w), h * w * C)


def interpolate_grid(table: Array, old: Size, new: Size) -> Array:
    """Bicubic resize of a position grid, [old patches, D] -> [new patches, D], as torch does it (corners not aligned)."""
    rows, columns = (jnp.asarray(_bicubic_matrix(o, n), table.dtype) for o, n in zip(old, new, strict=True))
    grid = table.reshape(*old, -1)
    out = jnp.einsum("yh,xw,hwd->yxd", rows, columns, grid, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(new[0] * new[1], -1)


def _bicubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Weights [new, old] of one-dimensional cubic convolution (Keys, 1981) with torch's a and clamped borders."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    left = np.floor(position).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(position - (left + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(left + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
