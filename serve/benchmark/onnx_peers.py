"""ONNX Runtime and OpenVINO as people use them: plain graphs of standard operators with every layer's keys and values cached.

"dynamic int8" is ONNX Runtime's own tool with its defaults. Beside them ours: graphs written for ONNX Runtime (`onnx.model`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trocr_jax.decoding import GenerateConfig
from trocr_jax.model import TrOCR

from ..onnx.graph import Style
from ..onnx.model import OnnxModel
from ..onnx.session import Arrays, Session, fast_session
from .peers import Make, Read, installed

PLAIN = Style(cross_cache=True, plain=True)


def available() -> dict[str, Make]:
    """The candidates that this environment has, by name."""
    found: dict[str, Make] = {
        "trocr-jax (ONNX Runtime, float32)": partial(_reading, style=Style()),
        "trocr-jax (ONNX Runtime, int8)": partial(_reading, style=Style(int8=True)),
        "ONNX Runtime (plain export, float32)": partial(_reading, style=PLAIN, open_session=Session),
        "ONNX Runtime (plain export, dynamic int8)": partial(_reading, style=PLAIN, open_session=dynamic_int8),
    }
    if installed("openvino"):
        for precision in ("float32", "bfloat16"):
            opened = partial(OpenVino, precision="f32" if precision == "float32" else "bf16")
            found[f"OpenVINO (plain export, {precision})"] = partial(_reading, style=PLAIN, open_session=opened)
    return found


def _reading(model: TrOCR, style: Style, open_session: Callable[[onnx.ModelProto], Any] = fast_session) -> Read:
    graphs = OnnxModel(model, style, open_session)

    def read(pixels: np.ndarray, tokens: int) -> np.ndarray:
        return np.asarray(graphs.generate(pixels, GenerateConfig(tokens, tokens)).tokens[:, 0])

    return read


def dynamic_int8(model: onnx.ModelProto) -> Session:
    """A session on what ONNX Runtime's dynamic quantisation makes of a graph."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        onnx.save(model, source)
        quantize_dynamic(source, target)
        return Session(onnx.load(target))


class OpenVino:
    """A graph compiled by OpenVINO for the CPU, with the `run` and `bound` of a session."""

    def __init__(self, model: onnx.ModelProto, precision: str):
        import openvino  # pyright: ignore[reportMissingImports]

        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        self._model = core.compile_model(core.read_model(model.SerializeToString()), "CPU", hints)
        self._outputs, self._kept = [output.name for output in model.graph.output], {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        found = self._model(dict(inputs) | self._kept)
        return {name: np.array(found[name]) for name in self._outputs}

    def bound(self, kept: Mapping[str, np.ndarray]) -> OpenVino:
        """The graph with inputs that stay the same."""
        other = copy.copy(self)
        other._kept = dict(kept)
        return other
