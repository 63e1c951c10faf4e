"""Weights to measure with where the real ones are not at hand: a program takes as long, whatever it computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.config import TrOCRConfig
from trocr_jax.model import TrOCR


def random_model(config: TrOCRConfig, dtype: str, seed: int = 0) -> TrOCR:
    """A model whose parameters are normal noise of the width that training begins with."""
    rng = np.random.default_rng(seed)

    def noise(parameter: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.02 * rng.standard_normal(parameter.shape, np.float32), parameter.dtype)

    return jax.tree.map(noise, TrOCR.abstract(config, jnp.dtype(dtype)))
