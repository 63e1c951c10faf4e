"""Reading lines inside Apache Beam: `RunInference(KeyedModelHandler(LineModelHandler()))`, also on Dataflow.

apache-beam is no requirement of this package; docs/scale.md has a script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult  # pyright: ignore[reportMissingImports]

from trocr_jax.compilation_cache import cache_compilations
from trocr_jax.reader import Reader

from .batch_job import output


class LineModelHandler(ModelHandler[Any, PredictionResult, Reader]):
    """An example is an image: a path, a file's bytes, a PIL image or an array. The inference is a dict of text, confidence,
    finish_reason, words, flags and error, as `trocr-jax batch` writes it; keys are the caller's business, with Beam's
    KeyedModelHandler.

    Args:
        model, dtype: as for `Reader.from_pretrained`.
        batch_size: images a step of the device, and the most that Beam is asked to hand over at a time.
        options: fields of GenerateConfig (num_beams, max_new_tokens, ...).
    """

    def __init__(self, model: str | None = None, *, dtype: str | None = None, batch_size: int = 8, **options: Any):
        super().__init__(min_batch_size=1, max_batch_size=batch_size)
        self._model, self._dtype, self._batch_size, self._options = model, dtype, batch_size, options

    def load_model(self) -> Reader:
        """Loads the model, once for each process."""
        cache_compilations()
        return Reader.from_pretrained(self._model, dtype=self._dtype)

    def run_inference(
        self, batch: Sequence[Any], model: Reader, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """inference_args override the options."""
        lines = model.stream(batch, batch_size=self._batch_size, **{**self._options, **(inference_args or {})})
        for example, line in zip(batch, lines, strict=True):
            row = output.row("", line)
            del row["id"]
            yield PredictionResult(example, row)

    def get_metrics_namespace(self) -> str:
        return "trocr_jax"
