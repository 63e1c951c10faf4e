"""What a run is made of before its first step: model, mesh, optimizer, batches, and the state that they begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trocr_jax import sharding
from trocr_jax.terminal import UsageError

from . import mesh as meshes
from . import preflight, vocabulary
from .batches import Batches
from .config import Config
from .data import training_lines
from .log import Log
from .optimizer import make_optimizer
from .parameters import Arrays, frozen_layers, new_lora, rates, with_lora
from .start import Start
from .step import Step, StepConfig, TrainState, inference, make_step, new_state


class Run:
    """The parts of a run, as its configuration and its start model have them.

    Raises:
        UsageError: flags do not fit the model.
        ValueError: the configuration cannot be followed.
    """

    def __init__(self, config: Config, model: Start, log: Log):
        self.config, self.model, self.log = config, model, log
        o, lora = config.optimizer, config.lora
        _refuse_misfit(config, model)
        factors = with_lora(rates(model.parameters, o.rates, o.layer_decay))
        trained = frozenset(name for name, factor in factors.items() if np.any(factor))
        self.mesh: Mesh = meshes.make_mesh(config.devices, config.mesh)
        self.step_config = StepConfig(
            model=model.config, trained=trained, frozen=frozen_layers(factors), mean=model.processor.mean,
            std=model.processor.std, dtype=config.dtype, remat=config.remat, label_smoothing=o.label_smoothing,
            accumulate=o.accumulate, lora_scale=lora.alpha / max(lora.rank, 1), ema=o.ema,
            tensor_parallel=self.mesh.shape[sharding.MODEL] > 1,
        )  # fmt: skip
        self.optimizer = make_optimizer(o, config.steps, factors)
        self.shapes = jax.eval_shape(self.fresh, model.parameters)
        self.shardings = meshes.state_shardings(self.shapes, self.mesh, config.fsdp)

    def fresh(self, parameters: Arrays) -> TrainState:
        """The state before the first step."""
        lora = self._lora(parameters) if self.config.lora.rank else {}
        return new_state(self.step_config, parameters, lora, self.optimizer, self.config.seed)

    def _lora(self, parameters: Arrays) -> Arrays:
        """LoRA's factors; where the vocabulary is another one, its tables too, whose new rows would stay as they were made."""
        lora, begin = self.config.lora, self.config.start
        learning = {name: x for name, x in parameters.items() if name in self.step_config.trained}  # others get no factors
        resized = vocabulary.TABLES & learning.keys() if begin.tokenizer or begin.extend_vocab else set()
        tables = {name: jnp.array(learning.pop(name)) for name in sorted(resized)}
        return new_lora(learning, lora.targets, lora.rank, self.config.seed) | tables

    def place(self) -> TrainState:
        """The state before the first step, on the mesh."""
        return jax.jit(self.fresh, out_shardings=self.shardings)(self.model.parameters)

    def abstract(self) -> TrainState:
        """The shapes of a state, and its places on the mesh."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.shardings)

    @cached_property
    def step(self) -> Step:
        """The compiled step."""
        return make_step(self.optimizer, self.step_config, (self.shardings, meshes.replicated(self.mesh)))

    @cached_property
    def inference(self) -> Callable[[TrainState], Arrays]:
        """A state -> the parameters to read with, whole on every device; compiled once."""
        return jax.jit(partial(inference, config=self.step_config), out_shardings=meshes.replicated(self.mesh))

    @cached_property
    def batches(self) -> Batches:
        config, data = self.config, self.config.data
        lines = training_lines(config, self.model, lambda problem: self.log("bad_record", problem=problem))
        rows = meshes.own_rows(self.mesh, config.batch_size)
        if data.cut and len(rows) < config.batch_size:
            raise ValueError("--data.cut looks at whole batches, which one host alone has; set it to 0")
        if data.group > 1 and len(rows) < config.batch_size:
            raise ValueError("--data.group sorts whole batches, which one host alone has; set it to 1")
        return Batches(
            load=lines, batch_size=config.batch_size, seed=config.seed, pad=self.model.config.pad_token_id,
            max_tokens=config.max_tokens, rows=rows, group=data.group, threads=data.threads, cut=data.cut,
        )  # fmt: skip

    def preflight(self) -> None:
        """Raises preflight.Failed where training would be in vain."""
        batches, checks = self.batches, self.config.preflight
        texts = [text for text in map(batches.load.text, range(checks.lines)) if text]
        parameters, tokenizer = jax.device_put(self.model.parameters), self.model.tokenizer
        for line in preflight.check(self.step_config, parameters, tokenizer, texts, batches[0], checks.overfit):
            self.log("preflight", passed=line)

    def forget_start(self) -> None:
        """Leaves of the start weights their shapes; the numbers of a run are its state's."""
        self.model = replace(self.model, parameters=self.shapes.model)

    def on_devices(self, host_rows: np.ndarray) -> jax.Array:
        """This host's rows of a batch, as its part of the whole one on the mesh."""
        return meshes.global_array(self.mesh, host_rows, self.config.batch_size)

    def parameter_counts(self) -> dict[str, int]:
        """How many there are, and how many of them are trained."""
        counts = {name: int(np.prod(x.shape)) for name, x in self.shapes.model.items()}
        trained = sum(counts[name] for name in self.step_config.trained & counts.keys())
        if self.config.lora.rank:
            trained = sum(int(np.prod(x.shape)) for x in self.shapes.lora.values())
        return {"parameters": sum(counts.values()), "trained": trained}


def _refuse_misfit(config: Config, model: Start) -> None:
    """Raises UsageError for flags that do not fit the model."""
    most, cut, encoder = model.config.decoder.max_positions, config.data.cut, model.config.encoder
    if config.max_tokens > most:
        raise UsageError(f"--max-tokens {config.max_tokens} is more than the {most} positions of this model")
    if cut and encoder.grid[0] > 1:
        raise UsageError(f"--data.cut needs a model with one row of patches, this one has {encoder.grid[0]}; set it to 0")
    if cut % encoder.patch_size[1]:
        raise UsageError(f"--data.cut {cut} must be a multiple of {encoder.patch_size[1]}, the width of this model's patches")
