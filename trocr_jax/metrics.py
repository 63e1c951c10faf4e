"""How far what was read is from what was written. A leaf: plain Python and numpy on plain strings.

Rates are percentages over a whole corpus, the edits of all lines over the length of all references, as the published TrOCR
numbers are; the mean of the lines' rates is a different number. No text is normalised unless a function says so. What TrOCR's own
scorers compute (microsoft/unilm, trocr/scoring.py) stands here too: its cer2 is `byte_cer`, because its library
measured bytes, its wpa `word_accuracy`; our `cer` counts characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

SAMPLES = 1000  # corpora drawn for an interval
BINS = 10  # of confidence
Rows = np.ndarray
"""What a line adds to the parts of a rate: [lines, 2] of numerator and denominator, or [lines, 3] for `words_found`."""


def edit_distance(a: Sequence, b: Sequence) -> int:
    """Fewest insertions, deletions and replacements that turn a into b (Levenshtein).

    Bit-parallel (Myers, 1999, in Hyyro's form, 2003): one column of the table is two integers, bit i the difference
    between rows i and i + 1; Python's integers are as wide as the text. As fast as need be, without a library.
    """
    if not a or not b:
        return len(a) + len(b)
    places: dict[object, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    mask, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = mask, 0, len(a)
    for item in b:
        equal = places.get(item, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right, left = down | ~(diagonal | up), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right = right << 1 | 1
        up = (left << 1 | ~(diagonal | right)) & mask
        down = right & diagonal & mask
    return distance


# --- what single lines add ---


def character_edits(prediction: str, reference: str) -> tuple[float, float]:
    """Edits and characters of the reference."""
    return edit_distance(prediction, reference), len(reference)


def byte_edits(prediction: str, reference: str) -> tuple[float, float]:
    """The same over UTF-8 bytes: a letter with an accent counts twice, most of Asia's three times."""
    return character_edits(prediction.encode(), reference.encode())  # pyright: ignore[reportArgumentType]


def word_edits(prediction: str, reference: str) -> tuple[float, float]:
    """The same over words between blanks."""
    return character_edits(prediction.split(), reference.split())  # pyright: ignore[reportArgumentType]


def exact(prediction: str, reference: str) -> tuple[float, float]:
    """1 where the line is right to the last character."""
    return float(prediction == reference), 1.0


def distance(prediction: str, reference: str) -> tuple[float, float]:
    """The edit distance itself, for the mean a line that TrOCR prints as "Norm ED" (it is not normalised)."""
    return edit_distance(prediction, reference), 1.0


def scene_word(prediction: str, reference: str) -> tuple[float, float]:
    """1 where the words agree in lower case with nothing but 0-9a-z kept, as scene text benchmarks count; "" equals ""."""
    return float(_alphanumeric(prediction) == _alphanumeric(reference)), 1.0


def _alphanumeric(text: str) -> str:
    return re.sub("[^0-9a-z]", "", text.lower())


def words_found(prediction: str, reference: str) -> tuple[float, float, float]:
    """SROIE: words in both (each as often as in both), words predicted, words of the reference; case and marks count."""
    predicted, wanted = Counter(prediction.split()), Counter(reference.split())
    return (predicted & wanted).total(), predicted.total(), wanted.total()


# --- rates of a corpus ---


def rows(measure: Callable[[str, str], tuple[float, ...]], predictions: Sequence[str], references: Sequence[str]) -> Rows:
    """One row a line.

    Raises:
        ValueError: not as many predictions as references, or none.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    return np.array([measure(p, r) for p, r in zip(predictions, references, strict=True)], np.float64)


def ratio(parts: Rows) -> float:
    """Sum of the first column over the sum of the second; over an empty corpus of references, every edit counts as one."""
    return float(parts[:, 0].sum() / max(parts[:, 1].sum(), 1.0))


def percent(parts: Rows) -> float:
    return 100.0 * ratio(parts)


def precision(parts: Rows) -> float:
    """Precision of `words_found`, in percent; 0 where nothing was predicted."""
    return 100.0 * parts[:, 0].sum() / max(parts[:, 1].sum(), 1.0)


def recall(parts: Rows) -> float:
    """Recall of `words_found`, in percent; 0 where there was nothing to find."""
    return 100.0 * parts[:, 0].sum() / max(parts[:, 2].sum(), 1.0)


def f1(parts: Rows) -> float:
    """Harmonic mean of precision and recall of `words_found`, in percent; 0 where nothing matches."""
    return 200.0 * parts[:, 0].sum() / max(parts[:, 1].sum() + parts[:, 2].sum(), 1.0)


def character_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """CER in percent."""
    return percent(rows(character_edits, predictions, references))


SCORES: dict[str, tuple[Callable[[str, str], tuple[float, ...]], Callable[[Rows], float]]] = {
    "cer": (character_edits, percent),
    "wer": (word_edits, percent),
    "byte_cer": (byte_edits, percent),
    "accuracy": (exact, percent),
    "acc_ed": (distance, ratio),
    "word_accuracy": (scene_word, percent),
    "sroie_precision": (words_found, precision),
    "sroie_recall": (words_found, recall),
    "sroie_f1": (words_found, f1),
}
"""Every score by name: what a line adds, and what the sums of all lines make of it. In percent, except acc_ed."""


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Name -> the score with the ends of its 95 % bootstrap interval."""
    out = {}
    for name in names:
        measure, total = SCORES[name]
        parts = rows(measure, predictions, references)
        out[name] = (total(parts), *interval(parts, total))
    return out


def interval(parts: Rows, total: Callable[[Rows], float]) -> tuple[float, float]:
    """The middle 95 % of a score over corpora of the same size drawn from these lines with replacement (Efron, 1979); the same
    for the same lines."""
    draws = np.random.default_rng(0)
    scores = [total(parts[draws.integers(0, len(parts), len(parts))]) for _ in range(SAMPLES)]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


# --- what goes wrong ---


def edits(prediction: str, reference: str) -> list[tuple[str, str]]:
    """A shortest way from the reference to the prediction: (character, what it became), "" for inserted or lost."""
    table = np.arange(len(reference) + 1)[:, None] + np.arange(len(prediction) + 1)[None]
    for i, wanted in enumerate(reference, 1):
        for j, read in enumerate(prediction, 1):
            table[i, j] = min(table[i - 1, j - 1] + (wanted != read), table[i - 1, j] + 1, table[i, j - 1] + 1)
    i, j, steps = len(reference), len(prediction), []
    while i or j:
        if i and j and table[i, j] == table[i - 1, j - 1] + (reference[i - 1] != prediction[j - 1]):
            i, j = i - 1, j - 1
            steps.append((reference[i], prediction[j]))
        elif i and table[i, j] == table[i - 1, j] + 1:
            i -= 1
            steps.append((reference[i], ""))
        else:
            j -= 1
            steps.append(("", prediction[j]))
    return steps[::-1]


def confusions(predictions: Sequence[str], references: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often each character was read as another; "" for inserted or lost."""
    pairs = zip(predictions, references, strict=True)
    return Counter((wanted, read) for p, r in pairs if p != r for wanted, read in edits(p, r) if wanted != read)


def calibration(confidences: Sequence[float], right: Sequence[bool]) -> tuple[float, list[tuple[int, float, float]]]:
    """Expected calibration error (Guo et al., 2017) and, for every bin of confidence, lines, mean confidence, share right.

    0 where lines of confidence 0.9 are right nine times in ten, and so on.
    """
    sure, good = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    places = np.clip((sure * BINS).astype(int), 0, BINS - 1)
    groups = [places == b for b in range(BINS) if (places == b).any()]
    table = [(int(own.sum()), float(sure[own].mean()), float(good[own].mean())) for own in groups]
    return sum(n * abs(s - g) for n, s, g in table) / max(len(sure), 1), table


def coverage(confidences: Sequence[float], right: Sequence[bool], risk: float) -> tuple[float, float] | None:
    """How many lines can be believed as they are (selective classification, El-Yaniv and Wiener, 2010).

    Args:
        risk: the share of wrong lines that may be among them.

    Returns:
        The confidence from which on lines are believed, and their share of all lines; as many as can be. None where even the
        surest are wrong too often.
    """
    order = np.argsort(confidences)[::-1]
    sure, wrong = np.asarray(confidences, np.float64)[order], ~np.asarray(right, bool)[order]
    ends = np.append(sure[:-1] != sure[1:], True)[: len(sure)]  # lines of the same confidence are believed together
    kept = np.flatnonzero(ends & (wrong.cumsum() <= risk * np.arange(1, len(sure) + 1)))
    return (float(sure[kept[-1]]), (int(kept[-1]) + 1) / len(sure)) if kept.size else None
