"""The published numbers of TrOCR (Li et al., AAAI 2023, and unilm's README, beam 10) and where their test sets lie.

Data sets are not downloaded: their owners ask for registration. Folders have the names that people usually have them under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trocr_jax.config import TrOCRConfig


@dataclass(frozen=True)
class Part:
    """A test set of a benchmark.

    Attributes:
        name: what the tables call it.
        folders: names under the benchmark's folder, the first that exists is taken.
        lines: how many it must have to be that test set.
        published: size of the model -> score -> number.
    """

    name: str
    folders: tuple[str, ...]
    lines: int
    published: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's scores, of which the first is the one that counts, and its parts."""

    scores: tuple[str, ...]
    parts: tuple[Part, ...]


def _words(name: str, folders: Sequence[str], lines: int, base: float, large: float) -> Part:
    return Part(name, tuple(folders), lines, {"base": {"word_accuracy": base}, "large": {"word_accuracy": large}})


def _sroie(precision: float, recall: float, f1: float) -> dict[str, float]:
    return {"sroie_precision": precision, "sroie_recall": recall, "sroie_f1": f1}


BENCHMARKS: dict[str, Benchmark] = {
    "iam": Benchmark(
        ("byte_cer", "cer", "wer"),
        (
            Part(
                "IAM test (Aachen split)", ("gt_test.txt", "test.jsonl", "test"), 2915,
                {"small": {"byte_cer": 4.22}, "base": {"byte_cer": 3.42}, "large": {"byte_cer": 2.89}},
            ),
        ),
    ),
    "sroie": Benchmark(
        ("sroie_f1", "sroie_precision", "sroie_recall"),
        (
            Part(
                "SROIE task 2 test", ("test",), 0,  # 361 receipts; the lines depend on how empty boxes are counted
                {"small": _sroie(95.74, 95.89, 95.82), "base": _sroie(96.31, 96.37, 96.34), "large": _sroie(96.57, 96.59, 96.58)},
            ),
        ),
    ),
    "str": Benchmark(
        ("word_accuracy",),
        (
            _words("IIIT5K-3000", ("IIIT5k_3000", "IIIT5K", "IIIT5k"), 3000, 93.4, 94.1),
            _words("SVT-647", ("SVT", "SVT_647"), 647, 95.2, 96.1),
            _words("IC13-857", ("IC13_857",), 857, 98.4, 98.4),
            _words("IC13-1015", ("IC13_1015",), 1015, 97.4, 97.3),
            _words("IC15-1811", ("IC15_1811",), 1811, 86.9, 88.1),
            _words("IC15-2077", ("IC15_2077",), 2077, 81.2, 84.1),
            _words("SVTP-645", ("SVTP", "SVTP_645"), 645, 92.1, 93.0),
            _words("CT80-288", ("CUTE80", "CT80", "CUTE80_288"), 288, 90.6, 95.1),
        ),
    ),
}  # fmt: skip


def size_name(config: TrOCRConfig) -> str:
    """small, base or large, by the encoder's width; empty for any other model."""
    return {384: "small", 768: "base", 1024: "large"}.get(config.encoder.hidden_size, "")
