"""AdamW and its learning rate over time, as gradient transformations over {path: array}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from .config import OptimizerConfig
from .parameters import found

FIRST_LR = 1e-8  # where fairseq's warmup begins


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Update number (from 0) -> learning rate.

    `inverse_sqrt` is fairseq's: linear over `warmup` updates, then lr * sqrt(warmup / update).
    """
    lr, warmup = config.lr, max(config.warmup, 1)

    def rate(update: Any) -> Any:
        update = jnp.asarray(update, jnp.float32)
        share = jnp.clip((update - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        after = {
            "inverse_sqrt": lr * jnp.sqrt(warmup / jnp.maximum(update, warmup)),
            "cosine": lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * share))),
            "linear": lr * (1 - (1 - config.final_lr) * share),
            "constant": jnp.float32(lr),
        }[config.schedule]
        return jnp.where(update < config.warmup, FIRST_LR + (lr - FIRST_LR) * update / warmup, after)

    return rate


def make_optimizer(config: OptimizerConfig, steps: int, rates: Mapping[str, Any]) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled weight decay (Loshchilov and Hutter, 2019), learning rate, and its factor for every parameter.

    The decay is multiplied by the learning rate, as torch's and fairseq's are.
    """
    parts = [
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        decay(config.weight_decay, config.decay),
        optax.scale_by_learning_rate(schedule(config, steps)),
        scale_by(rates),
    ]
    return optax.chain(*([optax.clip_by_global_norm(config.clip)] if config.clip else []), *parts)


def decay(weight: float, pattern: str) -> optax.GradientTransformation:
    """Adds `weight` times the parameters that the regex finds to their updates, single layers and kernels under LoRA, too.

    `optax.add_decayed_weights` decays an array or does not, and here an array has the layers of a whole stack.

    Raises:
        ValueError: from `init`, where the regex finds none.
    """

    def init(params: Any) -> optax.EmptyState:
        if not any(map(np.any, found(params, pattern).values())):
            raise ValueError(f"--optimizer.decay {pattern!r} finds none of the parameters that are trained")
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        decayed = found(updates, pattern)
        return {name: jnp.where(decayed[name], x + weight * params[name], x) for name, x in updates.items()}, state

    return optax.GradientTransformation(init, update)


def scale_by(factors: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiplies every update by its factor."""

    def update(updates: Any, _: Any = None) -> Any:
        return {name: x * jnp.asarray(factors.get(name, 1.0), x.dtype) for name, x in updates.items()}

    return optax.stateless(update)
