"""ONNX Runtime on the CPU behind arrays: a graph's inputs and outputs by name, and memory that stays bound from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

Arrays = dict[str, np.ndarray]


class Session:
    """A graph that is ready to run.

    Args:
        model: the graph.
        without: names of optimizers that are on by default.
        threads: how many share an operator; 0 is one for each core of the machine.
    """

    def __init__(self, model: onnx.ModelProto, without: tuple[str, ...] = (), threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
        self._outputs = {output.name: past for output, past in zip(model.graph.output, _pasts(model), strict=True)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        return self.bound({}).run(inputs)

    def bound(self, kept: Mapping[str, np.ndarray]) -> Bound:
        """The graph with inputs that stay the same. Where a cache is among them (an input `past_x` of the shape of the output
        `x`), the output is written into its memory."""
        return Bound(self._session, self._outputs, kept)


class Bound:
    """A session and what it reads at every run; for one thread at a time."""

    def __init__(self, session: Any, outputs: Mapping[str, str | None], kept: Mapping[str, np.ndarray]):
        from onnxruntime import OrtValue

        self._session, self._binding, self._value = session, session.io_binding(), OrtValue.ortvalue_from_numpy
        self._kept = {name: self._value(array) for name, array in kept.items()}  # the arrays live as long as these
        for name, value in self._kept.items():
            self._binding.bind_ortvalue_input(name, value)
        self._written = [name for name, past in outputs.items() if past in kept]
        self._given = [name for name in outputs if name not in self._written]
        for name in self._written:
            self._binding.bind_ortvalue_output(name, self._kept[str(outputs[name])])

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs that have no memory yet, for the inputs that are not bound."""
        values = {name: self._value(array) for name, array in inputs.items()}  # as above, until the graph has run
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in self._given:
            self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        found = self._binding.get_outputs()[len(self._written) :]
        return {name: value.numpy() for name, value in zip(self._given, found, strict=True)}


def _pasts(model: onnx.ModelProto) -> list[str | None]:
    """For every output the input whose memory it can take, if there is one."""
    inputs = {value.name: value.type for value in model.graph.input}
    pairs = ((f"past_{output.name}", output.type) for output in model.graph.output)
    return [past if inputs.get(past) == kind else None for past, kind in pairs]


def fast_session(model: onnx.ModelProto, threads: int = 0) -> Session:
    """A session without a fusion that slows norms down: sum and norm as one take five times as long as one by one."""
    return Session(model, ("SkipLayerNormFusion",), threads)
