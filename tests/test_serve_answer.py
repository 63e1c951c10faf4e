"""Answers made of jobs without a device: the Reader's text of pieces and images, and tokens that add up to it."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import serving
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from trocr_jax.batching.jobs import Job
from trocr_jax.decoding import GenerateConfig
from trocr_jax.flags import CONTINUES, NO_TEXT
from trocr_jax.line import Line, Token, Word, joined
from trocr_jax.serve.api.answer import LEAST_LOGPROB, Answer, JobPart, entry
from trocr_jax.tokens import Tokenizer

PIXELS = np.zeros((1, 1, 3), np.uint8)
START = "<s>"
"""At the beginning of a line, where a checkpoint was fine-tuned on labels that have it."""


def ids(text):
    own = serving.reader().tokenizer
    return [own.bos_token_id] * text.startswith(START) + own.labels(text.removeprefix(START))


def part(text, place=0, below=False, flags=(), status="stop"):
    """What a job read that gave this text."""
    tokens = ids(text)
    job = Job(PIXELS, GenerateConfig(), tokens=tokens, logprobs=[-0.1] * len(tokens), status=status)
    return JobPart(job, flags, place, below)


def image(*pieces, below=True):
    return [part(text, place, below) for place, text in enumerate(pieces)]


def reader_text(pieces):
    """What a Reader makes of the pieces of one image."""
    return joined([replace(piece).end(serving.reader(), len(piece.job.tokens)) for piece in pieces]).text


def in_steps(parts):
    """The answer, and what its deltas show, of jobs that get a token at a time."""
    wanted = [(one.job, one.job.tokens, one.job.status) for one in parts]
    for job, _, _ in wanted:
        job.tokens, job.status = [], "running"
    answer, deltas = Answer(serving.reader(), parts, 1 << 30, detailed=True), []
    for job, tokens, status in wanted:
        for token in tokens:
            job.tokens.append(token)
            deltas.append(answer.grow())
        job.status = status
        deltas.append(answer.grow())
    assert answer.text == "".join(delta.text for delta in deltas)
    return answer, [one for delta in deltas for one in delta.entries]


def at_once(parts):
    answer = Answer(serving.reader(), parts, 1 << 30, detailed=True)
    return answer, list(answer.grow().entries)


@pytest.mark.parametrize("read", [at_once, in_steps])
@pytest.mark.parametrize(
    "images",
    [
        [["abc"], ["def"]], [[START + "abc"], [START + "def"]], [["abc", "def"], ["g"]], [[START + "abc", START + "def"]],
        [["", "abc"]], [["x"], ["", "abc"]], [["abc", "", "def"]], [["", "", "abc", ""], ["x"]], [["é", "ü"], ["", "ß"]],
        [[""], ["abc"]], [["abc"], [""], [START], ["def"]], [["abc", ""]],
    ],
)  # fmt: skip
def test_text_is_the_readers_and_tokens_add_up_to_it(read, images):
    """Where a line begins with a special token, and where an image, or a piece of one, reads as empty."""
    rows = [image(*pieces, below=index > 0) for index, pieces in enumerate(images)]
    wanted = [reader_text(row) for row in rows]
    answer, entries = read([one for row in rows for one in row])
    assert answer.text == "\n".join(wanted) and [line.text for line in answer.lines] == wanted
    assert answer.finish_reason == "stop"
    assert b"".join(one.data for one in entries).decode() == answer.text


@pytest.mark.parametrize("read", [at_once, in_steps])
def test_newlines_that_no_token_follows_are_nobodys(read):
    blank = part("q", below=True, flags=(NO_TEXT,))
    blank.job.logprobs = [-9.0] * 2  # the model is not sure of it
    answer, entries = read([part("abc"), part("", below=True), blank])
    assert answer.text == "abc\n\n" and "".join(one.text for one in entries) == "abc"


def test_a_piece_that_goes_on_amid_a_word_gets_no_space():
    answer, entries = at_once([part("ab"), part("c", 1, flags=(CONTINUES,)), part("d", 2)])
    assert answer.text == "abc d" and [one.text for one in entries] == ["a", "b", "c", " d"]


def test_a_token_that_the_budget_dropped_is_not_shown():
    answer = Answer(serving.reader(), image("abc", "def", below=False), 4, detailed=True)
    assert "".join(one.text for one in answer.grow().entries) == answer.text == "abc" and answer.finish_reason == "length"


@pytest.mark.parametrize("stop", ["bcd", "cdé", "f", "xyz", "def"])
def test_a_stream_shows_nothing_of_a_stop_string_that_may_still_come(stop):
    """Token by token: what was shown once stays."""
    text = "abcdéf"
    one, shown = part(text, status="running"), ""
    tokens, one.job.tokens = one.job.tokens, []
    answer = Answer(serving.reader(), [one], 99, (stop,))
    for token in tokens:
        one.job.tokens.append(token)
        shown += answer.grow().text
    one.job.status = "stop"
    shown += answer.grow().text
    assert shown == answer.text == text.partition(stop)[0] and answer.finish_reason == "stop"


def test_tokens_that_were_spent_on_what_a_stop_string_ended_count():
    one = part("abcdef", status="running")
    one.job.tokens = one.job.tokens[:4]
    answer = Answer(serving.reader(), [one], 99, ("c",))
    answer.grow()
    assert (answer.text, answer.finish_reason, answer.tokens) == ("ab", "stop", 4)


@pytest.mark.parametrize(("short", "reason"), [(0, "stop"), (1, "length")])
def test_a_budget_below_what_two_images_took_ends_the_last(short, reason):
    parts = image("abc", below=False) + image("def")
    answer = Answer(serving.reader(), parts, sum(len(one.job.tokens) for one in parts) - short)
    answer.grow()
    assert answer.finish_reason == answer.lines[-1].finish_reason == reason
    assert [line.text for line in answer.lines] == ["abc", "def"]


def test_a_budget_that_ends_with_the_first_image_s_end_leaves_nothing_for_the_second():
    parts = image("abc", below=False) + image("def")
    answer = Answer(serving.reader(), parts, len(parts[0].job.tokens))
    answer.grow()
    assert (answer.text, answer.finish_reason, answer.tokens) == ("abc", "length", len(parts[0].job.tokens))


def test_a_blank_image_has_no_tokens_to_show():
    blank = part("q", flags=(NO_TEXT,))
    blank.job.logprobs = [-9.0] * 2  # the model is not sure of it
    answer, entries = at_once([blank, part("abc", below=True)])
    assert answer.text == "\nabc" == "".join(one.text for one in entries)


def test_a_log_probability_that_json_does_not_have_is_the_least():
    one = part("a")
    one.job.logprobs = [float("-inf"), -0.1]
    assert entry(serving.reader().tokenizer, one.job, 0).logprob == LEAST_LOGPROB
    json.dumps(LEAST_LOGPROB, allow_nan=False)


def test_a_stream_shows_no_part_of_a_character():
    one = part("ab", status="running")
    tokenizer = serving.reader().tokenizer
    tokens, one.job.tokens = tokenizer.labels("a字b"), []
    assert len(tokens) > 4, "a character of several tokens"
    answer, shown = Answer(serving.reader(), [one], 99), []
    for token in tokens:
        one.job.tokens.append(token)
        one.job.logprobs = [-0.1] * len(one.job.tokens)
        shown.append(answer.grow().text)
    assert "".join(shown) == "a字b" and not any("\ufffd" in piece for piece in shown)


def sentence_pieces():
    """Of the kind that writes the space before a word into its token, with words "▁a" and "▁b"."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Backend(models.WordLevel({name: index for index, name in enumerate([*names, "▁a", "▁b"])}, "<unk>"))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(names)
    return Tokenizer({"tokenizer.json": backend.to_str().encode()})


WORDS = [0, 5, 6, 2]
"""`<s>`, "▁a", "▁b", `</s>`"""


def test_after_a_special_token_words_keep_their_spaces_but_the_first():
    tokenizer, best = sentence_pieces(), [[(token, -0.1), (6, -0.2)] for token in WORDS]
    job = Job(PIXELS, GenerateConfig(), alternatives=2, tokens=WORDS, logprobs=[-0.1] * 4, best=best)
    shown = [entry(tokenizer, job, position) for position in range(4)]
    assert tokenizer.decode(WORDS) == "a b" and [one.text for one in shown[1:3]] == ["a", " b"]
    assert [one.best[1].text for one in shown] == ["b", "b", " b", " b"]


def test_tokens_that_begin_with_spaces_add_up():
    reader = copy.copy(serving.reader())
    reader.tokenizer = sentence_pieces()
    jobs = [Job(PIXELS, GenerateConfig(), tokens=WORDS, logprobs=[-0.1] * 4, status="stop") for _ in range(2)]
    answer = Answer(reader, [JobPart(jobs[0], ()), JobPart(jobs[1], (), below=True)], 99, detailed=True)
    assert "".join(one.text for one in answer.grow().entries) == answer.text == "a b\na b"


def test_a_line_as_a_dictionary_is_what_json_reads_back():
    line = Line("a", 0.5, (Token(7, "a", -0.7),), (Word("a", 0, 1, 0.5),), flags=("repetition",), alternatives=(Line("b"),))
    assert json.loads(json.dumps(line.to_dict())) == line.to_dict()
    assert line.to_dict("words", "text") == {"words": [{"text": "a", "start": 0, "end": 1, "confidence": 0.5}], "text": "a"}
    assert list(line.to_dict("words", "text")) == ["words", "text"]
