"""From an engine's jobs to what a client sees: text that grows, tokens with their log-probabilities, and the reason of the end.

An answer is the lines of a request's images in their order, one below the other. Images, and pieces of long ones, are read at
the same time; text comes out in order, and never has to be taken back: the bytes of an unfinished character, the beginning of
what may become a stop string, and a line that looks blank wait until they are decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from trocr_jax.engine import Job
from trocr_jax.line import NO_TEXT, Line, joined
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
    """What an answer has grown by."""

    text: str = ""
    entries: tuple[Entry, ...] = ()


NEW_IMAGE = "\n"
"""What stands in a text before the line of another image."""


@dataclass(frozen=True)
class Part:
    """What one job reads: an image of the request, or a piece of one that is too long for the model.

    Attributes:
        job: the engine's.
        flags: of the image.
        before: what stands in the text between it and the part before: NEW_IMAGE, a space where it is a further piece of the
            same image, nothing at the beginning.
    """

    job: Job
    flags: tuple[str, ...]
    before: str


class Answer:
    """One text for the images of a request.

    Args:
        reader: of the model.
        parts: what is read, in order.
        budget: most tokens in all.
        stops: strings that end the text; they are not part of it.
        detailed: whether anybody wants the tokens.

    Attributes:
        text: as far as it may be shown.
        tokens: generated and counted, end tokens included.
        finish_reason: "stop" or "length" when the answer is complete.
    """

    def __init__(self, reader: Reader, parts: list[Part], budget: int, stops: tuple[str, ...] = (), detailed: bool = False):
        self._reader, self._parts, self._budget, self._stops, self._detailed = reader, parts, budget, stops, detailed
        self.text, self.tokens = "", 0
        self.finish_reason: str | None = None
        self._lines: list[Line] = []  # of the parts that are done, as far as those before them are
        self._kept: list[int] = []  # how many tokens each of them may have
        self._shown = (0, 0)  # line and token that come next in a Delta

    @property
    def lines(self) -> list[Line]:
        """The lines of the images that are done and whole in the text, or were cut where the budget ended."""
        images: list[list[Line]] = []
        for part, line, start in zip(self._parts, self._lines, self._lay_out(partial=False)[1], strict=False):
            if start + len(line.text) > len(self.text):
                break
            if part.before in ("", NEW_IMAGE):
                images.append([])
            images[-1].append(line)
        done = sum(map(len, images))
        cut = done < len(self._parts) and self._parts[done].before not in ("", NEW_IMAGE)  # within an image
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
        for job in self._jobs:
            if job.status in ("expired", "cancelled", "failed"):
                raise timed_out() if job.status == "expired" else internal()
        complete = self._take_lines()
        text = self._lay_out(partial=not complete)[0]
        end = min((at for at in map(text.find, self._stops) if at >= 0), default=None)
        if end is not None:
            self._finish("stop")
        elif complete:
            whole = len(self._lines) == len(self._parts) and all(line.finish_reason == "stop" for line in self._lines)
            self._finish("stop" if whole else "length")
        else:
            end = len(text) - self._undecided(text)
        grown, self.text = text[len(self.text) : end], text[:end]
        return Delta(grown, tuple(self._entries()) if self._detailed else ())

    def close(self) -> None:
        """Drops what is still to be read."""
        for job in self._jobs:
            job.cancel()

    @property
    def _jobs(self) -> list[Job]:
        return [part.job for part in self._parts]

    def _lay_out(self, *, partial: bool) -> tuple[str, list[int]]:
        """The text of all parts that are done, if asked for with the unfinished one behind, and where each begins in it."""
        text, starts, texts = "", [], [line.text for line in self._lines]
        if partial and len(texts) < len(self._parts):
            texts.append(self._partial())
        for part, own in zip(self._parts, texts, strict=False):
            text += part.before if own or part.before == NEW_IMAGE else ""
            starts.append(len(text))
            text += own
        return text, starts

    def _take_lines(self) -> bool:
        """Jobs that are done, in order, become lines; whether that is all that the answer will have."""
        while len(self._lines) < len(self._parts):
            part = self._parts[len(self._lines)]
            job = part.job
            over, produced, room = job.over, len(job.tokens), self._budget - sum(self._kept)
            if room == 0:  # spent to the last token by the lines before: of this one nothing is read
                return True
            if not over and produced < room:
                return False
            kept = min(produced, room)
            finished = over and job.status == "stop" and kept == produced
            tokens, logprobs = np.array(job.tokens[:kept], np.int64), np.array(job.logprobs[:kept])
            self._lines.append(self._reader.line(tokens, logprobs, kept, finished, part.flags))
            self._kept.append(kept)
            if not finished and kept == room:
                return True
        return True

    def _partial(self) -> str:
        """The text so far of the part whose turn it is."""
        part = self._parts[len(self._lines)]
        return "" if NO_TEXT in part.flags else self._reader.tokenizer.decode(list(part.job.tokens)).rstrip(UNFINISHED)

    def _undecided(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        lengths = (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        unfinished = self._jobs[len(self._lines) : len(self._lines) + 1]
        self.tokens = sum(self._kept) + (sum(len(job.tokens) for job in unfinished) if reason == "stop" else 0)
        self.close()

    def _entries(self) -> Iterator[Entry]:
        """Tokens not shown yet whose characters all lie within the text."""
        tokenizer, (begin, first), starts = self._reader.tokenizer, self._shown, self._lay_out(partial=True)[1]
        for index in range(begin, len(starts)):
            job, flags = self._parts[index].job, self._parts[index].flags
            line = self._lines[index] if index < len(self._lines) else None
            ids = list(job.tokens) if line is None else job.tokens[: self._kept[index]]
            hidden = NO_TEXT in (flags if line is None else line.flags)
            for position, (_, end) in enumerate([] if hidden else tokenizer.spans(ids)):
                if starts[index] + end > len(self.text):
                    return
                if position >= first:
                    self._shown = index, position + 1
                    if ids[position] not in tokenizer.special_ids:
                        shown = entry(tokenizer, job, position)
                        yield shown if position else _after(self._parts[index].before, shown)
            if line is None:
                return
            first = 0
            self._shown = index + 1, 0


def _after(before: str, first: Entry) -> Entry:
    """A part's first token with what stands before the part, so that all tokens add up to the text."""
    return replace(first, text=before + first.text, data=before.encode() + first.data)


def entry(tokenizer: Tokenizer, job: Job, position: int) -> Entry:
    """A job's token with its alternatives."""
    before = job.tokens[:1] if position else []  # a line's first piece loses its space

    def one(token: int, logprob: float) -> Entry:
        data = tokenizer.pieces([*before, token])[-1]
        text = "</s>" if token == tokenizer.eos_token_id else data.decode("utf-8", "replace")
        return Entry(text, data, max(logprob, LEAST_LOGPROB))

    best = job.best[position] if job.alternatives else ()
    shown = one(job.tokens[position], job.logprobs[position])
    return Entry(shown.text, shown.data, shown.logprob, tuple(one(token, logprob) for token, logprob in best))


class Signal:
    """Set by the engine's thread, waited for in the event loop; many settings between two waits are one."""

    def __init__(self) -> None:
        self._loop, self._event, self._pending = asyncio.get_running_loop(), asyncio.Event(), False

    def set(self) -> None:
        if not self._pending:
            self._pending = True
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()
        self._pending = False


class Reading:
    """The answers of one request, and waiting for them.

    Args:
        answers: `n` of them.
        signal: that their jobs set.
        deadline: on the event loop's clock, which is `time.monotonic`.
    """

    def __init__(self, answers: list[Answer], signal: Signal, deadline: float):
        self.answers, self._signal, self._deadline = answers, signal, deadline

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index of the answer, what it has grown by) until all are complete.

        Raises:
            ApiError: 504 at the deadline, 500 when the device fails.
        """
        while True:
            for index, answer in enumerate(self.answers):
                if answer.finish_reason is None:
                    delta = answer.grow()
                    if delta.text or delta.entries or answer.finish_reason is not None:
                        yield index, delta
            if all(answer.finish_reason is not None for answer in self.answers):
                return
            await self._wait()

    async def complete(self) -> list[tuple[Entry, ...]]:
        """Waits for all; the tokens of every answer."""
        entries: list[tuple[Entry, ...]] = [()] * len(self.answers)
        async for index, delta in self.deltas():
            entries[index] += delta.entries
        return entries

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    def close(self) -> None:
        for answer in self.answers:
            answer.close()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._signal.wait()
        except TimeoutError:
            raise timed_out() from None
