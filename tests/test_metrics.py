"""Scores against cases worked by hand, against jiwer and rapidfuzz where definitions meet, and against plain properties."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from trocr_jax import metrics

TEXT = st.text(alphabet="abcdé 1", max_size=80)


def value(name: str, predictions: list[str], references: list[str]) -> float:
    """A score without its interval."""
    return metrics.score([name], predictions, references)[name][0]


@settings(max_examples=400, deadline=None)
@given(TEXT, TEXT)
def test_edit_distance_equals_rapidfuzz(a, b):
    assert metrics.edit_distance(a, b) == Levenshtein.distance(a, b)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=150), st.lists(st.integers(0, 3), max_size=150))
def test_edit_distance_of_any_sequences(a, b):
    assert metrics.edit_distance(a, b) == Levenshtein.distance(a, b) == metrics.edit_distance(b, a)


@settings(max_examples=100, deadline=None)
@given(TEXT, TEXT)
def test_the_edits_lead_from_reference_to_prediction_and_are_as_few_as_the_distance(prediction, reference):
    steps = metrics.edits(prediction, reference)
    assert "".join(wanted for wanted, _ in steps) == reference and "".join(read for _, read in steps) == prediction
    assert sum(wanted != read for wanted, read in steps) == metrics.edit_distance(prediction, reference)


WORDS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_corpus_rates_equal_jiwer(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    assert value("wer", predictions, references) == pytest.approx(100 * jiwer.wer(references, predictions))
    assert metrics.character_error_rate(predictions, references) == pytest.approx(100 * jiwer.cer(references, predictions))


def test_rates_by_hand():
    """abcd -> abxd is 1 edit of 4 characters, "" -> zz two edits of none: 3 of 4, not the mean of 25 % and infinity."""
    assert metrics.character_error_rate(["abxd", "zz"], ["abcd", ""]) == 75.0
    assert value("wer", ["the cat sat"], ["the cat sat down"]) == 25.0
    assert metrics.character_error_rate(["a b"], ["ab"]) == 50.0  # blanks count


def test_the_published_cer_counts_bytes():
    """é is two bytes: read as e, one is lost and one replaced: 2 edits of 5 bytes, against 1 of 4 characters."""
    assert value("byte_cer", ["cafe"], ["café"]) == 40.0
    assert metrics.character_error_rate(["cafe"], ["café"]) == 25.0


def test_scene_words_keep_letters_and_digits_only():
    predictions, references = ["Café-12", "HELLO!", "...", "abc"], ["caf12", "hello", "", "abd"]
    assert metrics.score(["word_accuracy"], predictions, references)["word_accuracy"][0] == 75.0


def test_sroie_matches_each_reference_word_once():
    """TOTAL TOTAL against TOTAL 5: one match of 2 predicted and 2 wanted; a second line all right: 2 of 2."""
    scores = metrics.score(
        ["sroie_precision", "sroie_recall", "sroie_f1"], ["TOTAL TOTAL", "RM 9.00", ""], ["TOTAL 5", "RM 9.00", "x"]
    )
    assert scores["sroie_precision"][0] == 75.0 and scores["sroie_recall"][0] == 60.0
    assert scores["sroie_f1"][0] == pytest.approx(2 * 75 * 60 / 135)
    nothing = metrics.score(["sroie_precision", "sroie_f1"], ["a"], ["b"])
    assert nothing["sroie_precision"][0] == nothing["sroie_f1"][0] == 0.0, "the original divides by zero here"


def test_case_counts_but_in_scene_words():
    assert metrics.score(["accuracy", "acc_ed"], ["Ab", "cd"], ["ab", "cd"])["accuracy"][0] == 50.0
    assert metrics.score(["acc_ed"], ["Ab", "cd"], ["ab", "cd"])["acc_ed"][0] == 0.5


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2"):
        metrics.character_error_rate(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 predictions for 0"):
        metrics.character_error_rate([], [])


def test_the_interval_covers_and_narrows():
    rng = np.random.default_rng(0)
    references = ["abcdefghij"] * 400
    predictions = ["".join(c if rng.random() > 0.1 else "x" for c in r) for r in references]
    few = metrics.score(["cer"], predictions[:50], references[:50])["cer"]
    many = metrics.score(["cer"], predictions, references)["cer"]
    assert many[1] < many[0] < many[2] and many[1] < 10 < many[2]
    assert many[2] - many[1] < 0.6 * (few[2] - few[1])
    assert metrics.score(["cer"], predictions, references)["cer"] == many, "the same every time"
    right = metrics.score(["accuracy"], references, references)["accuracy"]
    assert right == (100.0, 100.0, 100.0)


def test_confusions_are_counted_by_character():
    found = metrics.confusions(["0ne", "0h", "ab"], ["One", "Oh", "abc"])
    assert found == {("O", "0"): 2, ("c", ""): 1}


def test_calibration_by_hand():
    """0.95 twice, right once: 0.45 apart over half the lines; 0.15 twice, never right: 0.15 over the other half."""
    error, table = metrics.calibration([0.95, 0.95, 0.15, 0.15], [True, False, False, False])
    assert error == pytest.approx(0.5 * 0.45 + 0.5 * 0.15)
    assert [(n, round(s, 2), r) for n, s, r in table] == [(2, 0.15, 0.0), (2, 0.95, 0.5)]
    assert metrics.calibration([1.0, 1.0], [True, True])[0] == 0.0
    lines = [n for n, *_ in metrics.calibration([0.0, 0.15, 0.85, 0.95, 1.0], 5 * [True])[1]]
    assert lines == [1, 1, 1, 2], "1 lies in the last bin"


@pytest.mark.parametrize("risk", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_as_many_lines_are_believed_as_may_be(risk, seed):
    """Beside every threshold there is; few steps of confidence, so that many lines share one."""
    rng = np.random.default_rng(seed)
    sure, right = rng.integers(0, 6, 30) / 5, rng.random(30) < 0.8
    shares = {t: (sure >= t).mean() for t in sure if (~right[sure >= t]).mean() <= risk}
    expected = max(shares.items(), key=lambda each: each[1], default=None)
    assert metrics.coverage(sure.tolist(), right.tolist(), risk) == expected


def test_of_no_lines_none_is_believed():
    assert metrics.coverage([], [], 0.5) is None
