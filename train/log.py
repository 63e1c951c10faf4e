"""What a run says: JSON lines in a file always, lines and a progress bar for people, curves as PNG, TensorBoard when asked."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from trocr_jax.files import FilesError

LOG = "log.jsonl"
CURVES = {"loss": "train", "accuracy": "train", "score": "eval", "lines_per_s": "train"}


def rounded(x: float) -> float:
    """A number as the log has it: to six significant digits, as learning rates are small."""
    return float(f"{x:.6g}")


class Log:
    """log(kind, **fields): one event.

    Args:
        folder: the run's folder.
        steps: how many the whole run has, for the progress bar.
        host: all but the first, 0, write nothing, and say only which records of theirs cannot be used.
    """

    def __init__(self, folder: Path, steps: int, tensorboard: bool = False, host: int = 0):
        self.folder, self.host, self.bar, self.board = folder, host, None, None
        if host:
            return
        _end_line(folder / LOG)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, unit="step", dynamic_ncols=True)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"))

    def __call__(self, kind: str, **fields: Any) -> None:
        if self.host:
            if kind == "bad_record":
                self._show(kind, {"host": self.host, **fields})
            return
        try:
            self._write(kind, {name: rounded(x) if isinstance(x, float) else x for name, x in fields.items()})
        except OSError as error:
            raise FilesError(f"{self.folder}: the log cannot be written ({error.strerror})") from error

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "time": round(time.time(), 1), **fields}, ensure_ascii=False) + "\n")
        self._show(kind, fields)
        if self.board and kind in ("train", "eval"):
            for name, x in fields.items():
                if name != "step" and not isinstance(x, str):
                    self.board.add_scalar(f"{kind}/{name}", x, fields["step"])
        if kind == "eval":
            draw_curves(self.folder)

    def _show(self, kind: str, fields: dict[str, Any]) -> None:
        shown = (f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in fields.items())
        line = f"{kind:<10} " + " ".join(shown)
        if self.bar is None:
            sys.stderr.write(f"{line}\n")  # at once: several threads tell of bad records
        elif kind == "train":
            self.bar.set_postfix({name: f"{fields[name]:.3g}" for name in ("loss", "lines_per_s", "device_share")}, refresh=False)
            self.bar.update(fields["step"] - self.bar.n)
        else:
            self.bar.write(line, file=sys.stderr)

    def samples(self, step: int, samples: list[tuple[np.ndarray, str, str]]) -> None:
        """Lines with what is written on them and what was read, to TensorBoard: (uint8 pixels, text, read)."""
        if self.board is None:
            return
        for place, (pixels, _, _) in enumerate(samples):
            self.board.add_image(f"samples/{place}", pixels, step, dataformats="HWC")
        rows = [f"| {place} | {_cell(text)} | {_cell(read)} |" for place, (_, text, read) in enumerate(samples)]
        self.board.add_text("samples", "\n".join(["| | written | read |", "|---|---|---|", *rows]), step)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _end_line(path: Path) -> None:
    """Ends a line of which a killed process wrote only the beginning: the next event would be lost behind it.

    Raises:
        FilesError: the file cannot be written.
    """
    try:
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with open(path, "ab") as file:
                file.write(b"\n")
    except OSError as error:
        raise FilesError(f"{path}: the log cannot be written ({error.strerror})") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, those of steps that a resumed run repeated only once; lines that were cut off are left out."""
    events: dict[Any, dict[str, Any]] = {}
    for event in filter(None, map(_event, (folder / LOG).read_bytes().split(b"\n"))):
        events[(event["kind"], event["step"]) if event["kind"] in ("train", "eval") else len(events)] = event
    return list(events.values())


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line of the log holds; None where it was cut off, perhaps amid a character."""
    try:
        event = json.loads(line.decode())
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def evaluations(folder: Path, step: int) -> list[dict[str, Any]]:
    """The evaluations up to a step, in order; without those of an earlier run in the folder that this one did not continue."""
    events = read_log(folder)
    began = max((event["time"] for event in events if event["kind"] == "start" and event["step"] == 0), default=0.0)
    found = [event for event in events if event["kind"] == "eval" and event["step"] <= step and event["time"] >= began]
    return sorted(found, key=lambda event: event["step"])


def draw_curves(folder: Path) -> None:
    """curves.png: loss, accuracy, error and speed over the steps; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError:
        return
    events = read_log(folder)
    figure = Figure(figsize=(10, 7))
    figure.subplots_adjust(0.07, 0.07, 0.98, 0.95, 0.15, 0.3)  # matplotlib would draw it twice to find these
    for axes, (name, kind) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        rows = sorted((e["step"], e) for e in events if e["kind"] == kind)
        for field in sorted({f for _, e in rows for f in e if f == name or (name == "score" and f.startswith("cer_"))}):
            points = [(step, e[field]) for step, e in rows if field in e]
            axes.plot(*zip(*points, strict=True), label=field, linewidth=2 if field == name else 1)
        axes.set(title="CER %" if name == "score" else name, xlabel="step")
        if name in ("loss", "score") and any(y > 0 for line in axes.lines for y in np.asarray(line.get_ydata())):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # 40, not 4 x 10^1
            axes.yaxis.set_minor_formatter(LogFormatter())
        if name == "score" and rows:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(folder / "curves.png", dpi=100)
