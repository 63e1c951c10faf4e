"""Reading lines inside Ray Data: `dataset.map_batches(LineReader, batch_format="pyarrow", ...)`.

An actor holds one model. Nothing here imports Ray, and Ray is no requirement of this package; docs/scale.md has a script.
"""

from __future__ import annotations

from typing import Any

from trocr_jax.compilation_cache import cache_compilations
from trocr_jax.reader import Reader

from .batch_job import output


class LineReader:
    """A callable class for `map_batches`: a table with a column of images becomes the table that `trocr-jax batch` writes.

    Args:
        model, dtype: as for `Reader.from_pretrained`.
        image: the column of files' bytes, paths or {bytes, path}.
        id: the column that becomes `id`; the image's path is what `ray.data.read_binary_files(include_paths=True)` gives.
        batch_size: images a step of the device; best a divisor of the batch that Ray hands over.
        options: fields of GenerateConfig (num_beams, max_new_tokens, ...).
    """

    def __init__(
        self, model: str | None = None, *, dtype: str | None = None, image: str = "bytes", id: str = "path",
        batch_size: int | None = None, **options: Any,
    ):  # fmt: skip
        cache_compilations()
        self.reader = Reader.from_pretrained(model, dtype=dtype)
        self.image, self.id, self.batch_size, self.options = image, id, batch_size, options

    def __call__(self, table: Any) -> Any:
        """A pyarrow table in, one of as many rows out; a bad image is a row with an error."""
        images = [_image(value) for value in table[self.image].to_pylist()]
        lines = self.reader.stream(images, batch_size=self.batch_size, **self.options)
        names = map(str, table[self.id].to_pylist())
        return output.table([output.row(name, line) for name, line in zip(names, lines, strict=True)])


def _image(value: Any) -> Any:
    return value.get("bytes") or value.get("path") or b"" if isinstance(value, dict) else value or b""
