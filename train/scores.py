"""How well a run reads its validation lines, and whether that still gets better."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import hosts
from .config import Config
from .log import Log, evaluations, rounded
from .parameters import Arrays, build
from .start import Start
from .validation import Lines, digest, evaluate, held_out


class Scores:
    """The evaluations of a run. The first host makes them; the others wait for it at their next step.

    Attributes:
        valid: a hash of the lines; scores of other lines do not compare.
    """

    def __init__(self, config: Config, model: Start, log: Log):
        self.patience, self.max_tokens, self.log = config.patience, config.max_tokens, log
        self.model_config, self.tokenizer, self.processor = model.config, model.tokenizer, model.processor
        self._lines: dict[str, Lines] = held_out(config, model.processor) if jax.process_index() == 0 else {}
        self.valid = digest(self._lines)
        self._all: list[float] = []  # of these lines so far, those before a pause too

    def recall(self, folder: Path, step: int) -> None:
        """Takes from the log what was measured up to a step."""
        if jax.process_index() == 0:
            self._all = [event["score"] for event in evaluations(folder, step) if event.get("valid") == self.valid]

    def measure(self, step: int, parameters: Arrays) -> dict[str, Any]:
        """Reads the lines; returns {"score", "valid", ...}, on other hosts than the first nothing."""
        if jax.process_index() > 0:
            return {}
        began = time.perf_counter()
        model = build(self.model_config, {name: x.addressable_data(0) for name, x in parameters.items()})
        metrics, samples = evaluate(model, self.tokenizer, self.processor, self._lines, self.max_tokens)
        metrics["valid"] = self.valid
        self.log("eval", step=step, **metrics, seconds=time.perf_counter() - began)
        self.log.samples(step, samples)
        self._all.append(rounded(metrics["score"]))  # as the log has it
        return metrics

    def out_of_patience(self) -> bool:
        """Whether the last evaluations brought nothing better. All hosts ask, after every evaluation, and the first one knows."""
        if self.patience is None:
            return False
        return hosts.agreed(bool(self._all) and len(self._all) - 1 - int(np.argmin(self._all)) >= self.patience)
