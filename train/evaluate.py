"""Measure a model on labelled lines: error rates with intervals, a table by source, what it confuses, how well it knows itself.

The table goes to stderr, one JSON object to stdout, and the worst lines with their pictures to a page of HTML.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trocr_jax import metrics
from trocr_jax.compilation_cache import cache_compilations
from trocr_jax.reader import TOGETHER, Reader
from trocr_jax.terminal import UsageError, check_known, check_writable

from .benchmarks import BENCHMARKS, Benchmark, Part, size_name
from .config import SyntheticConfig
from .data import SYNTHETIC
from .drawn_sets import drawn_sets
from .report import render
from .results import ALL, Reading, Result, Task, decomposed, unreadable
from .sets.records import Record, Source, SourceError, row_names
from .sets.sources import open_source

SEED = 0  # for drawn lines
SCORES = ("cer", "wer", "accuracy")
CONFUSIONS = 10


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        data: data sets, each a row of the table: paths in any format that docs/tutorial.md lists, or "synthetic" (drawn lines in
            fonts that training does not use, one row a level).
        model: directory or hub name; by default the model in the package.
        benchmark: a public benchmark; `data` then names its folder. Its own scores are measured, on references as its scorer
            saw them, and the numbers published for a model of this size stand beside ours; those are of `--beams 10`.
            iam: gt_test.txt, test.jsonl or test/ in the folder. sroie: test/ with .jpg and .txt. str: IIIT5k_3000, SVT, IC13_857,
            IC13_1015, IC15_1811, IC15_2077, SVTP and CUTE80, those that are there, as LMDB or any other format.
        scores: cer, wer, byte_cer (what TrOCR's scorer calls cer), accuracy (whole lines), acc_ed (edits a line),
            word_accuracy (lower case, nothing but 0-9a-z, as scene text is counted), sroie_precision, sroie_recall, sroie_f1.
        beams: numbers of beams, each measured; 1 is greedy.
        max_tokens: most tokens of a line; by default the checkpoint's own limit.
        batch_size: lines read at once; by default as the device likes it.
        dtype: by default float32 on CPU and bfloat16 elsewhere.
        limit: lines of every data set at most; by default all, and 1000 drawn ones of every level.
        as_published: pass references through the tokenizer first, as the original scorer did (small models lose some signs);
            a benchmark always does.
        normalize: Unicode's form in which readings and references are compared; by default as they stand. An accent may be
            one character with its letter, as models write it, or one behind it: NFC takes these for equal.
        report: page of HTML to write.
    """

    data: tuple[str, ...] = ("synthetic",)
    model: str | None = None
    benchmark: Literal["iam", "sroie", "str"] | None = None
    scores: tuple[str, ...] = SCORES
    beams: tuple[int, ...] = (1,)
    max_tokens: int | None = None
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    limit: int | None = None
    as_published: bool = False
    normalize: Literal["NFC", "NFKC"] | None = None
    report: Path | None = None


def run(config: Config) -> int:
    """Measures; returns the exit code, 1 where lines could not be read at all.

    Raises:
        UsageError: flags that mean nothing. ValueError: no such data set or model.
    """
    check(config)
    cache_compilations()
    reader = Reader.from_pretrained(config.model, dtype=config.dtype)
    benchmark = BENCHMARKS[config.benchmark] if config.benchmark else None
    tasks = benchmark_tasks(benchmark, config.data[0], reader) if benchmark else data_tasks(config)
    names = benchmark.scores if benchmark else config.scores
    results = [measure(reader, tasks, names, beams, config) for beams in config.beams]
    for result in results:
        print(table(result, tasks), file=sys.stderr)
    print(json.dumps(summary(results, tasks, reader, config), ensure_ascii=False), flush=True)
    if config.report:
        config.report.write_text(render(results, tasks, reader.name), encoding="utf-8")
    return 1 if any(reading.line.error for reading in results[0].readings) else 0


def check(config: Config) -> None:
    """Raises UsageError for flags that mean nothing or do not fit each other, before a model is loaded."""
    if not (config.data and config.scores and config.beams):
        raise UsageError("--data, --scores and --beams need at least one value each")
    check_known("score", config.scores, metrics.SCORES)
    numbers = (*config.beams, config.max_tokens, config.batch_size, config.limit)
    if min(number for number in numbers if number is not None) < 1:
        raise UsageError("--beams, --max-tokens, --batch-size and --limit must be at least 1")
    if config.benchmark and (len(config.data) > 1 or SYNTHETIC in config.data):
        raise UsageError(f"--benchmark {config.benchmark} needs --data with its folder, and nothing else")
    if config.benchmark and config.scores != SCORES:
        raise UsageError(f"--benchmark {config.benchmark} has its own scores: leave --scores out")
    if config.report:
        check_writable(config.report, "--report")


def data_tasks(config: Config) -> list[Task]:
    """The data sets that are named."""
    drawn = drawn_sets(SyntheticConfig(seed=SEED), config.limit) if SYNTHETIC in config.data else {}
    stored = row_names((place for place in config.data if place != SYNTHETIC), {*drawn, ALL})
    return [Task(name, source, {}) for name, source in (drawn | {name: open_source(x) for name, x in stored.items()}).items()]


def benchmark_tasks(benchmark: Benchmark, folder: str, reader: Reader) -> list[Task]:
    """The parts of a benchmark that lie in its folder.

    Raises:
        SourceError: none does.
    """
    root = Path(folder).expanduser()
    size = size_name(reader.model.config)
    tasks = []
    for part in benchmark.parts:
        found = next((root / name for name in part.folders if (root / name).exists()), None)
        if found is None:
            print(f"{part.name}: none of {', '.join(part.folders)} in {root}; left out", file=sys.stderr)
            continue
        source = open_source(found)
        _warn_of_size(part, len(source))
        tasks.append(Task(part.name, source, part.published.get(size, {})))
    if not tasks:
        raise SourceError(f"{root}: holds no part of this benchmark")
    return tasks


def _warn_of_size(part: Part, lines: int) -> None:
    if part.lines and lines != part.lines:
        print(f"{part.name}: has {lines} lines, the published test set {part.lines}; numbers do not compare", file=sys.stderr)


def measure(reader: Reader, tasks: Sequence[Task], names: Sequence[str], beams: int, config: Config) -> Result:
    """Reads every line of every data set and scores them."""
    began = time.perf_counter()
    readings = [reading for task in tasks for reading in read_task(reader, task, beams, config)]
    seconds = time.perf_counter() - began
    groups = {task.name: [r for r in readings if r.source == task.name] for task in tasks}
    if len(tasks) > 1:
        groups[ALL] = readings
    scores = {name: _scores(names, [r for r in group if r.scored]) for name, group in groups.items()}
    return Result(beams, readings, scores, len(readings) / seconds)


def _scores(names: Sequence[str], group: Sequence[Reading]) -> dict[str, tuple[float, float, float]]:
    """The scores by name; none where a data set has no line to compare. An image that could not be read counts as read empty."""
    return metrics.score(names, [r.line.text for r in group], [r.reference for r in group]) if group else {}


def read_task(reader: Reader, task: Task, beams: int, config: Config) -> Iterator[Reading]:
    """Reads every line of a data set."""
    count = min(config.limit or len(task.source), len(task.source))
    records = [_record(task.source, index) for index in range(count)]
    length = {} if config.max_tokens is None else {"max_new_tokens": config.max_tokens}
    pictures = (record.image for record in records)
    lines = reader.stream(pictures, batch_size=config.batch_size, together=TOGETHER, num_beams=beams, **length)
    for record, line in zip(records, lines, strict=True):
        line = replace(line, text=normalized(line.text, config.normalize))
        written = normalized(_reference(record, reader, config), config.normalize)
        yield Reading(task.name, record.name, record.image, written, line)


def _reference(record: Record, reader: Reader, config: Config) -> str:
    """A record's text, as the original scorer saw it where it is asked for."""
    published = config.as_published or config.benchmark
    return reader.tokenizer.decode(reader.tokenizer.labels(record.text)) if published else record.text


def normalized(text: str, form: Literal["NFC", "NFKC"] | None) -> str:
    """The text in a form of Unicode's, or as it stands without one."""
    return unicodedata.normalize(form, text) if form else text


def _record(source: Source, index: int) -> Record:
    """A record of a data set. A broken one is kept to be counted, without a text that it could be scored against."""
    try:
        return source[index]
    except (ValueError, OSError, KeyError) as error:
        return Record(b"", "", f"record {index}: {error}")


def table(result: Result, tasks: Sequence[Task]) -> str:
    """A row a source: each score with its interval, and the published number where there is one."""
    published = {task.name: task.published for task in tasks}
    rows = [f"{'greedy' if result.beams == 1 else f'beam {result.beams}'}: {result.lines_per_s:.1f} lines/s"]
    for name, scores in result.scores.items():
        known = published.get(name, {})
        cells = [f"{key} {x:.2f} ({low:.2f} to {high:.2f}){_beside(known, key)}" for key, (x, low, high) in scores.items()]
        rows.append(f"  {name:<24}{result.counts[name]:>7} lines  " + "  ".join(cells))
    rows += [f"  {remark}" for remark in (*unreadable(result.readings), *decomposed(result.readings))]
    rows.append(f"  expected calibration error {result.calibration[0]:.3f}")
    rows += [f"  {_believed(risk, found)}" for risk, found in result.coverage.items()]
    if result.confusions:
        common = result.confusions.most_common(CONFUSIONS)
        rows.append(f"  most confused: {', '.join(f'{wanted!r} as {read!r} {count}' for (wanted, read), count in common)}")
    return "\n".join(rows)


def _believed(risk: float, found: tuple[float, float] | None) -> str:
    said = "none" if found is None else f"those of confidence {found[0]:.3f} and more, {found[1]:.1%} of all"
    return f"lines to believe with at most {risk:.0%} of them wrong: {said}"


def _beside(published: dict[str, float], score: str) -> str:
    return f" [published {published[score]:.2f}]" if score in published else ""


def summary(results: Sequence[Result], tasks: Sequence[Task], reader: Reader, config: Config) -> dict[str, Any]:
    """The one object on stdout."""
    published = {task.name: task.published for task in tasks}
    return {
        "model": reader.name,
        "dtype": str(reader.model.dtype.name),
        "benchmark": config.benchmark,
        "normalize": config.normalize,
        "results": [
            {
                "beams": result.beams,
                "lines": len(result.readings),
                "unreadable": sum(reading.line.error is not None for reading in result.readings),
                "left_out": sum(not reading.scored for reading in result.readings),
                "lines_per_s": round(result.lines_per_s, 2),
                "ece": round(result.calibration[0], 4),
                "coverage": [_coverage(risk, found) for risk, found in result.coverage.items()],
                "scores": {source: _rounded(scores, published.get(source, {})) for source, scores in result.scores.items()},
                "confusions": [[*pair, count] for pair, count in result.confusions.most_common(CONFUSIONS)],
            }
            for result in results
        ],
    }


def _coverage(risk: float, found: tuple[float, float] | None) -> dict[str, float | None]:
    """The confidence unrounded, as lines may be just as sure."""
    threshold, covered = found or (None, 0.0)
    return {"risk": risk, "confidence": threshold, "coverage": round(covered, 4)}


def _rounded(scores: dict[str, tuple[float, float, float]], published: dict[str, float]) -> dict[str, dict[str, float]]:
    """Value and interval, and the published value where there is one."""
    rows = {}
    for name, (value, low, high) in scores.items():
        rows[name] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
        if name in published:
            rows[name]["published"] = published[name]
    return rows
