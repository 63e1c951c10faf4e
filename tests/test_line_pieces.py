"""Lines that were read in pieces: put together they are one line, whatever the pieces had."""

from dataclasses import replace

import pytest

from trocr_jax.line import Line, Token, Word, joined

ONE = Line("two words", 0.5, (Token(7, "two words", -0.7), Token(2, "", 0.0)), (Word("two", 0, 3, 0.9), Word("words", 4, 9, 0.6)))
TWO = Line("end", 0.25, (Token(9, "end", -1.4),), (Word("end", 0, 3, 0.25),))
BLANK = Line(flags=("no_text",))
BROKEN = Line.failed("no numbers")


def test_a_whole_line_is_itself():
    assert joined([ONE]) is ONE


def test_text_words_and_tokens_follow_each_other():
    line = joined([ONE, TWO, ONE])
    assert line.text == "two words end two words" and line.confidence == pytest.approx(0.5 * 0.25 * 0.5)
    assert line.tokens == ONE.tokens + TWO.tokens + ONE.tokens and line.finish_reason == "stop"
    assert all(line.text[word.start : word.end] == word.text for word in line.words) and len(line.words) == 5


@pytest.mark.parametrize("pieces", [[BLANK, ONE, TWO], [ONE, BLANK, TWO], [ONE, TWO, BLANK]])
def test_a_blank_piece_adds_nothing(pieces):
    assert joined(pieces) == joined([ONE, TWO])
    assert joined([BLANK, BLANK]) == BLANK


def test_a_word_that_goes_on_is_one():
    line = joined([ONE, replace(TWO, flags=("continues",)), ONE])
    assert line.text == "two wordsend two words" and line.flags == ()
    assert [(word.text, line.text[word.start : word.end]) for word in line.words] == [(w, w) for w in line.text.split()]
    assert line.words[1].confidence == pytest.approx(0.6 * 0.25)
    assert joined([BLANK, replace(TWO, flags=("continues",))]) == TWO


@pytest.mark.parametrize("pieces", [[ONE, BROKEN], [BROKEN, ONE, TWO], [BLANK, BROKEN]])
def test_a_piece_that_could_not_be_read_costs_the_whole_line(pieces):
    assert joined(pieces).error == "no numbers" and not joined(pieces).text


def test_what_is_true_of_a_piece_is_true_of_the_line():
    cut = replace(TWO, finish_reason="length", flags=("repetition", "several_pages"))
    line = joined([replace(ONE, flags=("several_pages",)), cut])
    assert line.finish_reason == "length" and line.flags == ("several_pages", "repetition")
    assert joined([cut, ONE]).finish_reason == "length"


def with_others(line, *confidences):
    others = (replace(line, text=f"{line.text}{c}", confidence=c) for c in confidences)
    return replace(line, alternatives=tuple(others))


def test_a_piece_without_alternatives_takes_none_from_the_others():
    line = joined([with_others(ONE, 0.4, 0.1), TWO])
    assert [x.text for x in line.alternatives] == ["two words0.4 end", "two words0.1 end"]


def test_alternatives_are_the_most_probable_combinations():
    pieces = [with_others(ONE, 0.4, 0.1), with_others(TWO, 0.2, 0.15)]
    line = joined(pieces)
    assert line.text == "two words end"
    assert [x.text for x in line.alternatives] == ["two words end0.2", "two words0.4 end"]
    assert all(x.alternatives == () for x in line.alternatives)
    drawn = joined(pieces, drawn=True)
    assert [x.text for x in drawn.alternatives] == ["two words0.4 end0.2", "two words0.1 end0.15"], "no draw counts twice"
