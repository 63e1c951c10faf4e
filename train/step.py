"""One training step: loss, gradient and update as one compiled program whose state is donated.

Letters: B lines, T target length, A micro-batches, n devices.

The state holds float32 masters as {path: array}; the model is put together inside the program, in the dtype that it computes in.
The random numbers of a step come from (seed, step), so a resumed run draws what the first one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from trocr_jax.config import TrOCRConfig
from trocr_jax.model import cross_entropy, normalize, shift_right
from trocr_jax.network.attention import plain_attention
from trocr_jax.network.layers import Array, precision

from .parameters import Arrays, build, merged, without

Metrics = dict[str, Array]
Step = Callable[["TrainState", Array, Array], tuple["TrainState", Metrics]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a run must keep. Arrays are float32.

    Attributes:
        step: [] int32, updates done.
        seed: [] uint32
        model: parameters, trained or frozen; under LoRA the ones that it adds to.
        lora: its factors, and by their own names the parameters that are trained whole beside them; empty without.
        ema: moving average of what is trained; empty without.
        optimizer: optax's state over what is trained.
    """

    step: Array
    seed: Array
    model: Arrays
    lora: Arrays
    ema: Arrays
    optimizer: Any


@dataclass(frozen=True)
class StepConfig:
    """What is fixed in the compiled program.

    Attributes:
        model: the model's config.
        trained: paths of the parameters that are trained; under LoRA what `TrainState.lora` has of them.
        frozen: single layers of trained stacks that are not trained, as "encoder.layers.3.mlp.fc1.kernel".
        mean, std: how uint8 images are normalised.
        dtype: what to compute in; masters stay float32.
        remat: compute activations again in the backward pass instead of keeping them.
        accumulate: A, micro-batches that a batch is cut into.
        lora_scale: alpha / rank.
        ema: decay of the moving average a step; 0 is off.
        tensor_parallel: the weights are cut over "model", which rules out a GPU's own attention kernel.
    """

    model: TrOCRConfig
    trained: frozenset[str]
    frozen: frozenset[str] = frozenset()
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: str = "float32"
    remat: bool = False
    label_smoothing: float = 0.0
    accumulate: int = 1
    lora_scale: float = 1.0
    ema: float = 0.0
    tensor_parallel: bool = False


def new_state(config: StepConfig, model: Arrays, lora: Arrays, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step. It holds the model's own arrays, which `make_step` takes the memory of.

    Raises:
        ValueError: none of the parameters is trained.
    """
    state = TrainState(jnp.int32(0), jnp.uint32(seed), dict(model), dict(lora), {}, ())
    trained = trainable(state, config)
    if not trained:
        raise ValueError(f"StepConfig.trained has none of the model's parameters, such as {next(iter(model))}")
    ema = {name: jnp.array(x) for name, x in trained.items()} if config.ema else {}
    return TrainState(state.step, state.seed, state.model, state.lora, ema, jax.jit(optimizer.init)(trained))


def trainable(state: TrainState, config: StepConfig) -> Arrays:
    return dict(state.lora) if state.lora else {name: x for name, x in state.model.items() if name in config.trained}


def inference(state: TrainState, config: StepConfig) -> Arrays:
    """The parameters to read with, plain and float32: averaged where there is an average, LoRA merged."""
    return full(state, {**trainable(state, config), **state.ema}, config)


def full(state: TrainState, trained: Arrays, config: StepConfig) -> Arrays:
    """All parameters of the model, given the trained ones."""
    return merged(state.model, trained, config.lora_scale) if state.lora else {**state.model, **trained}


def loss_sum(params: Arrays, images: Array, labels: Array, key: Array, config: StepConfig) -> tuple[Array, Metrics]:
    """Summed cross-entropy over real tokens, and what is reported of it.

    Args:
        images: uint8 [B,height,width,3].
        labels: int32 [B,T], end token last, padded.
    """
    with precision(jnp.dtype(config.dtype)):
        model = build(*cut(config.model, params, images.shape[2]), jnp.dtype(config.dtype))
        model = plain_attention(model) if config.tensor_parallel else model
        pixels = normalize(images, config.mean, config.std)
        logits = model(pixels, shift_right(labels, config.model), key=key, remat=config.remat)
    loss, tokens = cross_entropy(logits, labels, config.model.pad_token_id, label_smoothing=config.label_smoothing)
    right = (jnp.argmax(logits, axis=-1) == labels) & (labels != config.model.pad_token_id)
    return loss, {"loss": loss, "tokens": tokens, "right": jnp.sum(right.astype(jnp.float32))}


def cut(config: TrOCRConfig, params: Arrays, width: int) -> tuple[TrOCRConfig, Arrays]:
    """The model for images that lack columns at the right: the positions of those columns are left out, the others stay.

    Raises:
        ValueError: the model has several rows of patches, whose positions do not lie side by side.
    """
    encoder, name = config.encoder, "encoder.position_embedding"
    if width == encoder.image_size[1]:
        return config, params
    if encoder.grid[0] != 1:
        raise ValueError(f"images {width} pixels wide do not fit a model of {encoder.grid[0]} rows of patches: set data.cut to 0")
    smaller = replace(encoder, image_size=(encoder.image_size[0], width))
    return replace(config, encoder=smaller), {**params, name: params[name][: smaller.num_tokens]}


def gradient_sum(state: TrainState, images: Array, labels: Array, config: StepConfig, key: Array) -> tuple[Arrays, Metrics]:
    """Gradient of `loss_sum` by the trained parameters, and the sums, over all micro-batches."""

    def loss(trained: Arrays, images: Array, labels: Array, key: Array) -> tuple[Array, Metrics]:
        return loss_sum(full(state, trained, config), images, labels, key, config)

    differentiate = jax.grad(loss, has_aux=True)
    trained = trainable(state, config)
    if config.accumulate == 1:
        return differentiate(trained, images, labels, key)

    def part(x: Array) -> Array:
        """[B,...] -> [A,B/A,...]; micro-batch a takes the rows a, a + A, ..., so that every device keeps its own."""
        return x.reshape(-1, config.accumulate, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, micro: tuple[Array, Array, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(trained, *micro)), None

    keys = jax.random.split(key, config.accumulate)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, trained, images, labels, key))
    return jax.lax.scan(add, zero, (part(images), part(labels), keys))[0]


def update(
    state: TrainState, gradient: Arrays, sums: Metrics, optimizer: optax.GradientTransformation, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """Applies a summed gradient; metrics a token."""
    tokens = jnp.maximum(sums["tokens"], 1.0)
    gradient = without(jax.tree.map(lambda g: g / tokens, gradient), config.frozen)
    trained = trainable(state, config)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; our own code runs under "strict" too
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, trained)
        trained = cast(Arrays, optax.apply_updates(trained, updates))
    ema = _averaged(state, trained, config.ema)
    model, lora = (state.model, trained) if state.lora else ({**state.model, **trained}, {})
    metrics = {"loss": sums["loss"] / tokens, "accuracy": sums["right"] / tokens, "grad_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, state.seed, model, lora, ema, optimizer_state), metrics


def _averaged(state: TrainState, trained: Any, decay: float) -> Arrays:
    """The moving average; young ones forget faster, or they would remember the start for 1 / (1 - decay) steps."""
    age = state.step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + age) / (10 + age))
    return {name: average * kept + trained[name] * (1 - kept) for name, average in state.ema.items()}


def dropout_key(state: TrainState) -> Array:
    return jax.random.fold_in(jax.random.key(state.seed), state.step)


def make_step(optimizer: optax.GradientTransformation, config: StepConfig, out_shardings: Any = None) -> Step:
    """The compiled step: (state, images, labels) -> state and {loss, accuracy, grad_norm}. The state is donated.

    On a mesh, placement decides the parallelism: a batch sharded over devices makes the gradient a sum over all of them.

    Args:
        out_shardings: those of the result, so that a state comes back as it was placed.
    """

    @partial(jax.jit, donate_argnums=0, out_shardings=out_shardings)
    def step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
        gradient, sums = gradient_sum(state, images, labels, config, dropout_key(state))
        return update(state, gradient, sums, optimizer, config)

    return step


def make_pmap_step(optimizer: optax.GradientTransformation, config: StepConfig) -> Step:
    """The same step as a literal `jax.pmap`: states replicated with a leading axis n, images [n,B/n,...], labels [n,B/n,T].

    For code bases that are built around pmap. Dropout draws differently from `make_step`, each device for itself.
    """

    @partial(jax.pmap, axis_name="devices", donate_argnums=0)
    def step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(dropout_key(state), jax.lax.axis_index("devices"))
        gradient, sums = jax.lax.psum(gradient_sum(state, images, labels, config, key), "devices")
        return update(state, gradient, sums, optimizer, config)

    return step
