"""The evaluation as one page of HTML without outside parts: scores, confusions, calibration, and the worst lines as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from trocr_jax import images, metrics

from .results import Reading, Result, Task, unreadable

WORST, PAIRS = 60, 30
THUMBNAIL = (640, 64)  # px
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}small{color:#666}figure{margin:1rem 0;border-bottom:1px solid #ddd}
img{max-width:100%;border:1px solid #ccc}code{font:14px ui-monospace,monospace;white-space:pre-wrap}
del{background:#fdd;color:#a00}
ins{background:#dfd;color:#060;text-decoration:none}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}td,th,figure{border-color:#444}del{background:#511;color:#faa}
ins{background:#153;color:#afa}small{color:#999}}
"""


def render(results: Sequence[Result], tasks: Sequence[Task], model: str) -> str:
    """The page."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(model)}</title><style>{STYLE}</style>"
    parts = [f"{head}<h1>{escape(model)}</h1>"]
    published = {task.name: task.published for task in tasks}
    for result in results:
        kind = "Greedy" if result.beams == 1 else f"Beam {result.beams}"
        parts.append(f"<h2>{kind}</h2>{_scores(result, published)}")
    result = results[0]
    parts += [f"<p>{escape(remark)}</p>" for remark in unreadable(result.readings)]
    parts += [_calibration(result), _confusions(result), _worst(result.readings)]
    return "\n".join(parts)


def _scores(result: Result, published: dict[str, dict[str, float]]) -> str:
    rows = []
    for source, scores in result.scores.items():
        for name, (value, low, high) in scores.items():
            known = published.get(source, {}).get(name)
            interval, beside = f"{low:.2f} to {high:.2f}", "" if known is None else f"{known:.2f}"
            rows.append((source, str(result.counts[source]), name, f"{value:.2f}", interval, beside))
    return _table(("source", "lines", "score", "value", "95 % interval", "published"), rows)


def _calibration(result: Result) -> str:
    error, bins = result.calibration
    rows = [(str(lines), f"{sure:.3f}", f"{right:.3f}") for lines, sure, right in bins]
    table = _table(("lines", "mean confidence", "share right"), rows)
    said = f"Expected calibration error {error:.3f}: 0 would be a model that knows when it is right."
    return f"<h2>Confidence</h2><p>{said}</p>{table}{_coverage(result)}"


def _coverage(result: Result) -> str:
    found = ((f"{risk:.0%}", *(covered or (None, 0.0))) for risk, covered in result.coverage.items())
    rows = [(risk, "none" if sure is None else f"{sure:.3f}", f"{share:.1%}") for risk, sure, share in found]
    return _table(("wrong among those believed, at most", "confidence from", "share of all lines"), rows)


def _confusions(result: Result) -> str:
    rows = [(str(count), _sign(wanted), _sign(read)) for (wanted, read), count in result.confusions.most_common(PAIRS)]
    return f"<h2>Confusions</h2>{_table(('times', 'written', 'read as'), rows)}"


def _worst(readings: Sequence[Reading]) -> str:
    """The lines with the most edits, where most of the corpus's error comes from."""
    ranked = sorted(readings, key=lambda r: -metrics.edit_distance(r.line.text, r.reference))
    figures = [_figure(r) for r in ranked[:WORST] if r.line.text != r.reference]
    return f"<h2>Worst lines</h2>{''.join(figures)}"


def _figure(reading: Reading) -> str:
    note = reading.line.error or f"confidence {reading.line.confidence:.3f} {' '.join(reading.line.flags)}"
    caption = f"<small>{escape(reading.source)}: {escape(reading.name)}; {escape(note)}</small>"
    text = difference(reading.line.text, reading.reference)
    return f"<figure>{_picture(reading.image)}<br><code>{text}</code><br>{caption}</figure>"


def difference(prediction: str, reference: str) -> str:
    """The reference with what was lost struck out and what was read instead marked."""
    out = []
    for wanted, read in metrics.edits(prediction, reference):
        if wanted == read:
            out.append(escape(wanted))
        else:
            out.append((f"<del>{escape(wanted)}</del>" if wanted else "") + (f"<ins>{escape(read)}</ins>" if read else ""))
    return "".join(out).replace("</del><del>", "").replace("</ins><ins>", "")


def _picture(image: Any) -> str:
    try:
        picture = images.load(image)
    except images.ImageError:
        return "<small>no picture</small>"
    picture.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _sign(character: str) -> str:
    return {"": "(nothing)", " ": "(space)"}.get(character, character)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
