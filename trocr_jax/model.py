"""TrOCR: an image encoder and a text decoder (Li et al., AAAI 2023, arXiv 2109.10282).

Letters: B batch, S image tokens, E width of the image tokens, T target length, V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from . import pretrained
from .checkpoints import weights
from .config import TrOCRConfig
from .network.decoder import Decoder
from .network.encoder import Encoder
from .network.layers import Array, Dtype, keys, linear, precision, split
from .network.mesh_axes import refuse_explicit


@lru_cache(maxsize=8)
def _shapes(kind: type[TrOCR], config: TrOCRConfig, dtype: Dtype) -> TrOCR:
    """A model of shapes, which takes NNX a tenth of a second; without the shardings of the mesh that is set when it is made."""
    made = jax.eval_shape(lambda: kind(config, dtype=dtype, rngs=keys(jax.random.key(0))))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)


class TrOCR(nnx.Module):
    """The whole model. A pytree of parameters: pass it through `jax.jit`, `jax.grad`, `jax.pmap` as an argument."""

    def __init__(self, config: TrOCRConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config.encoder, dtype=dtype, rngs=rngs)
        if config.has_projection:
            self.enc_to_dec_proj = linear(config.encoder.hidden_size, config.decoder.hidden_size, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.decoder, config.memory_size, pad_token_id=config.pad_token_id, dtype=dtype, rngs=rngs)

    @classmethod
    def abstract(cls, config: TrOCRConfig, dtype: Dtype = jnp.float32) -> TrOCR:
        """The model with shapes instead of numbers: nothing is computed and no memory taken.

        Raises:
            ValueError: a dtype that is no floating one.
        """
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"a model's dtype is float32, bfloat16 or float16, not {jnp.dtype(dtype).name}")
        return jax.tree.map(lambda shape: shape, _shapes(cls, config, jnp.dtype(dtype)))  # whoever changes it changes no other

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = None, *, dtype: Dtype | None = None, put: weights.Put | None = None
    ) -> TrOCR:
        """A checkpoint by hub name (or `owner/model@revision`), directory or fairseq file; by default the model in the package.

        Args:
            dtype: what parameters are held and computed in; by default the dtype of the stored weights, float16 in the package.
            put: (parameter name, host array) -> device array; by default the whole array on the default device.

        Raises:
            ValueError: not found, damaged, unsupported or not fitting its config (FilesError, ConfigError, WeightsError, ...).
        """
        checkpoint = pretrained.open_checkpoint(name)
        return weights.load(cls.abstract(checkpoint.config, dtype or checkpoint.dtype), checkpoint.tensors, put)

    @property
    def dtype(self) -> Dtype:
        """The dtype of the parameters, in which everything but softmax and LayerNorm statistics is computed."""
        return self.decoder.dtype

    def encode(self, pixels: Array, *, key: Array | None = None, remat: bool = False) -> Array:
        """Normalised pixels [B,height,width,C] -> the vectors that the decoder reads, [B,S,E].

        Raises:
            ValueError: pixels of another shape or no multiple of the patch, or arrays on a mesh with Explicit axes.
        """
        refuse_explicit(self, pixels)
        memory = self.encoder(pixels.astype(self.dtype), key=key, remat=remat)
        with precision(self.dtype):
            return self.enc_to_dec_proj(memory) if self.config.has_projection else memory

    def __call__(self, pixels: Array, ids: Array, *, key: Array | None = None, remat: bool = False) -> Array:
        """Teacher forcing.

        Args:
            pixels: normalised, [B,height,width,C].
            ids: decoder input [B,T], the start token first (`shift_right` of the labels).
            key: turns dropout on.
            remat: trade compute for memory in the backward pass.

        Returns:
            Logits [B,T,V] in the model's dtype.

        Raises:
            ValueError: as for `encode`, or T is more than the decoder's positions.
        """
        encoder_key, decoder_key = split(key, 2)
        memory = self.encode(pixels, key=encoder_key, remat=remat)
        return self.decoder.logits(self.decoder(ids, memory, key=decoder_key, remat=remat))


def shift_right(labels: Array, config: TrOCRConfig) -> Array:
    """Labels [B,T] (padded) -> decoder input [B,T]: the start token, then the labels but the last."""
    start = jnp.full_like(labels[:, :1], config.decoder_start_token_id)
    return jnp.concatenate([start, labels[:, :-1]], axis=1)


def cross_entropy(logits: Array, labels: Array, pad_token_id: int, *, label_smoothing: float = 0.0) -> tuple[Array, Array]:
    """Sum of the cross-entropy over real tokens and their number, so that shards and micro-batches add up exactly.

    Args:
        logits: [B,T,V] for the labels at the same positions (no further shift).
        labels: [B,T]; pad positions do not count.
        label_smoothing: share of the target mass spread evenly over the vocabulary.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    loss = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * log_probs.mean(axis=-1)
    real = (labels != pad_token_id).astype(jnp.float32)
    return jnp.sum(loss * real), jnp.sum(real)


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 images [B,height,width,C] -> float32 pixels, (x / 255 - mean) / std; on the device, a quarter of the transfer."""
    scaled = images.astype(jnp.float32) * jnp.float32(1 / 255)
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
