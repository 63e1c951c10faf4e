"""From an engine's jobs to what a client sees: text that grows, tokens with their log-probabilities, and the reason of the end.

An answer is the lines of a request's images in their order, one below the other. Images, and pieces of long ones, are read at
the same time; text comes out in order, and never has to be taken back: the bytes of an unfinished character, the beginning of
what may become a stop string, and a line that looks blank wait until they are decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from trocr_jax.engine import Job
from trocr_jax.flags import NO_TEXT
from trocr_jax.line import Line, between, joined
from trocr_jax.reader import Reader
from trocr_jax.tokens import Tokenizer

from .errors import internal, timed_out

UNFINISHED = "\ufffd"
LEAST_LOGPROB = -9999.0  # OpenAI's floor; JSON has no infinity


@dataclass(frozen=True)
class Entry:
    """One token as the API shows it: its text (a part of a character as U+FFFD), its bytes, and what else was likely."""

    text: str
    data: bytes
    logprob: float
    best: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What an answer has grown by.

    What stands between parts belongs to the next entry, so that all entries add up to the text as far as it ends with a token: an
    image without text at the end leaves a newline that no token follows, and a stop string may leave a part of a token.
    """

    text: str = ""
    entries: tuple[Entry, ...] = ()


NEW_IMAGE = "\n"
"""What stands in a text before the line of another image."""


@dataclass
class JobPart:
    """What one job reads: an image of the request, or a piece of one that is too long for the model.

    Attributes:
        job: the engine's job.
        flags: the image's flags.
        place: its index among the pieces of its image, 0 for the first or only one.
        below: whether there are images before this one in the text.
        line: what was read, when nothing more will come: the job is over, or the answer's budget.
        kept: how many of the job's tokens are in that line.
        shown: how many of them were given as entries.
    """

    job: Job
    flags: tuple[str, ...]
    place: int = 0
    below: bool = False
    line: Line | None = None
    kept: int = 0
    shown: int = 0

    @property
    def before(self) -> str:
        """What stands in the text between it and the part before."""
        return between(self.flags) if self.place else NEW_IMAGE if self.below else ""

    @property
    def tokens(self) -> list[int]:
        """The tokens that the job has produced so far; of a part that has ended, those that are in its line."""
        return list(self.job.tokens) if self.line is None else self.job.tokens[: self.kept]

    @property
    def is_blank(self) -> bool:
        """Whether the image looks blank: then its tokens give no text."""
        return NO_TEXT in (self.flags if self.line is None else self.line.flags)

    def text(self, tokenizer: Tokenizer) -> str:
        """What has been read so far, without an unfinished character at the end."""
        if self.line is not None:
            return self.line.text
        return "" if self.is_blank else tokenizer.decode(self.tokens).rstrip(UNFINISHED)

    def end(self, reader: Reader, kept: int) -> Line:
        """The line of the first `kept` tokens; the others are dropped."""
        job, self.kept = self.job, kept
        tokens, logprobs = np.array(job.tokens[:kept], np.int64), np.array(job.logprobs[:kept])
        finished = job.status == "stop" and kept == len(job.tokens)
        self.line = reader.line(tokens, logprobs, kept, finished, self.flags)
        return self.line


class Answer:
    """One text for the images of a request.

    Args:
        reader: the model's reader.
        parts: what is read, in order.
        budget: most tokens in all.
        stops: strings that end the text; they are not part of it.
        detailed: whether anybody wants the tokens.

    Attributes:
        text: what has been read, as far as it may be shown.
        tokens: how many were generated and count, end tokens included.
        finish_reason: "stop" or "length" when the answer is complete.
    """

    def __init__(self, reader: Reader, parts: list[JobPart], budget: int, stops: tuple[str, ...] = (), detailed: bool = False):
        self._reader, self._parts, self._budget, self._stops, self._detailed = reader, parts, budget, stops, detailed
        self.text, self.tokens = "", 0
        self._told = 0  # characters of the text that the entries given so far add up to
        self.finish_reason: str | None = None

    @property
    def lines(self) -> list[Line]:
        """The lines of the images that are done and whole in the text, or were cut where the budget ended."""
        images: list[list[Line]] = []
        for part, start in zip(self._parts, self._lay_out(partial=False)[1], strict=False):
            if part.line is None or start + len(part.line.text) > len(self.text):
                break
            if part.place == 0:
                images.append([])
            images[-1].append(part.line)
        done = sum(map(len, images))
        cut = done < len(self._parts) and self._parts[done].place > 0
        found = list(map(joined, images))
        if cut and self.finish_reason == "length":
            return [*found[:-1], replace(found[-1], finish_reason="length")]
        return found[:-1] if cut else found

    def grow(self) -> Delta:
        """What is new since the last call.

        Raises:
            ApiError: an image was not read.
        """
        if self.finish_reason is not None:
            return Delta()
        for part in self._parts:
            if part.job.status in ("expired", "cancelled", "failed"):
                raise timed_out() if part.job.status == "expired" else internal()
        complete = self._end_parts()
        text, starts = self._lay_out(partial=not complete)
        end = min((at for at in map(text.find, self._stops) if at >= 0), default=None)
        if end is not None:
            self._finish("stop")
        elif complete:
            whole = all(part.line is not None and part.line.finish_reason == "stop" for part in self._parts)
            self._finish("stop" if whole else "length")
        else:
            end = len(text) - self._undecided(text)
        grown, self.text = text[len(self.text) : end], text[:end]
        return Delta(grown, tuple(self._entries(starts)) if self._detailed else ())

    def close(self) -> None:
        """Drops what is still to be read."""
        for part in self._parts:
            part.job.cancel()

    def _end_parts(self) -> bool:
        """Ends, in order, the parts of which nothing more will come; returns whether that is all the answer will have."""
        for part in self._parts:
            if part.line is not None:
                continue
            over, produced, room = part.job.over, len(part.job.tokens), self._budget - self._kept  # over first: tokens may come
            if not over and produced < room:
                return False
            part.end(self._reader, min(produced, room))
            if part.kept == room:  # all of it is spent: nothing of those after it is read
                return True
        return True

    @property
    def _kept(self) -> int:
        return sum(part.kept for part in self._parts)

    def _lay_out(self, *, partial: bool) -> tuple[str, list[int]]:
        """The text of the parts that have ended, with `partial` also the next one so far, and where each part begins in it."""
        text, starts, image = "", [], 0
        for part in self._parts:
            if part.line is None and not partial:
                break
            own = part.text(self._reader.tokenizer)
            if part.place == 0:
                text += part.before
                image = len(text)
            elif own and len(text) > image:  # as `joined`: only between two pieces that have text
                text += part.before
            starts.append(len(text))
            text += own
            if part.line is None:
                break
        return text, starts

    def _undecided(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        lengths = (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        begun = next((len(part.tokens) for part in self._parts if part.line is None), 0)
        self.tokens = self._kept + (begun if reason == "stop" else 0)
        self.close()

    def _entries(self, starts: list[int]) -> Iterator[Entry]:
        """Tokens not shown yet whose characters all lie within the text, of parts that begin there."""
        tokenizer = self._reader.tokenizer
        for part, start in zip(self._parts, starts, strict=False):
            ids = [] if part.is_blank else part.tokens
            spans = tokenizer.spans(ids) if part.shown < len(ids) else []
            for position in range(part.shown, len(spans)):
                first, end = (start + at for at in spans[position])
                if end > len(self.text):
                    return
                part.shown = position + 1
                if ids[position] not in tokenizer.special_ids:
                    yield _after(self.text[self._told : first], entry(tokenizer, part.job, position))
                    self._told = end


def _after(before: str, shown: Entry) -> Entry:
    """A token's entry with the text before it that belongs to no token: what stands between its part and the one before."""
    return replace(shown, text=before + shown.text, data=before.encode() + shown.data)


def entry(tokenizer: Tokenizer, job: Job, position: int) -> Entry:
    """A job's token with its alternatives."""
    written = (token for token in job.tokens[:position] if token not in tokenizer.special_ids)
    before = list(islice(written, 1))  # a line's first piece loses its space, the others do not

    def one(token: int, logprob: float) -> Entry:
        data = tokenizer.pieces([*before, token])[-1]
        text = "</s>" if token == tokenizer.eos_token_id else data.decode("utf-8", "replace")
        return Entry(text, data, max(logprob, LEAST_LOGPROB))

    best = job.best[position] if job.alternatives else ()
    shown = one(job.tokens[position], job.logprobs[position])
    return Entry(shown.text, shown.data, shown.logprob, tuple(one(token, logprob) for token, logprob in best))
