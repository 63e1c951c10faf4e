"""Decoding images on all cores, in processes of their own: threads of one process hold each other up in Python's lock.

A decoder is `python -m trocr_jax.serve.batch_job.decode FD`: it imports no jax, takes what to do and then lists of images from
its end of a pipe, and ends when the other end is gone, however its parent died. One that a hostile image kills is replaced, and
that image named.
"""

from __future__ import annotations

import multiprocessing
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from trocr_jax.terminal import UsageError

from .places import FetchError

T = TypeVar("T")

CHUNK = 8
"""Images that a process gets at a time."""


class DecoderError(ValueError):
    """No decoding process can be had."""


@dataclass(eq=False)
class DecoderProcess:
    """One process and our end of its pipe."""

    process: subprocess.Popen[bytes]
    pipe: Connection

    @classmethod
    def start(cls, work: Callable[[Any], Any]) -> DecoderProcess:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                process = _start_process(theirs.fileno())
            except OSError as error:
                ours.close()
                raise DecoderError(f"a decoding process did not start: {error}") from None
        decoder = cls(process, ours)
        try:
            ours.send(work)
            ours.recv()
        except (EOFError, OSError):
            decoder.end()
            raise DecoderError("a decoding process did not start; its own message is above") from None
        return decoder

    def ask(self, images: Sequence[Any]) -> list[Any]:
        """What the work makes of the images. Raises EOFError or OSError where the process died, and errors that end the job."""
        self.pipe.send(images)
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        """Ends the process, also while another thread asks it: that thread then gets EOFError."""
        self.process.kill()

    def end(self) -> None:
        """Kills the process, which may not see that the pipe closes: one forked from ours may hold our end of it open."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def _start_process(pipe: int) -> subprocess.Popen[bytes]:
    """A Python process that serves one end of a pipe. With -P it does not look for modules where the images are. It has a session
    of its own, so that Ctrl-C reaches the parent alone, which then closes the pipe.
    """
    command = [sys.executable, "-P", "-m", "trocr_jax.serve.batch_job.decode", str(pipe)]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(command, pass_fds=[pipe], stdin=nothing, stdout=nothing, start_new_session=True)


class Decoders(Generic[T]):
    """A pool of decoding processes, each started when it is first needed.

    Args:
        work: called with each image; from a module without jax, and picklable.
        count: processes.
        failed: reason -> the result for an image that kills its process.
    """

    def __init__(self, work: Callable[[Any], T], count: int, failed: Callable[[str], T]):
        self.work, self.count, self.failed = work, count, failed
        self._free: queue.LifoQueue[DecoderProcess | None] = queue.LifoQueue()  # one that runs before one to be started
        for _ in range(count):
            self._free.put(None)
        self._pool = ThreadPoolExecutor(count, "decoder")
        self._running: set[DecoderProcess] = set()
        self._closed = False

    def submit(self, images: Sequence[Any]) -> Future[list[T]]:
        """What the work makes of the images, in order."""
        return self._pool.submit(self._decode, images)

    def close(self) -> None:
        """Ends the processes, also amid an image, which may take for ever; what was not begun is dropped."""
        self._closed = True
        for decoder in list(self._running):
            decoder.kill()
        self._pool.shutdown(cancel_futures=True)
        for decoder in self._running:
            decoder.end()

    def _decode(self, images: Sequence[Any]) -> list[T]:
        decoded = self._ask(images)
        if decoded is not None:
            return decoded
        alone = [self._ask([image]) for image in images]  # find the one that kills
        return [found[0] if found else self.failed("the image crashed its decoder") for found in alone]

    def _ask(self, images: Sequence[Any]) -> list[T] | None:
        """What a decoder makes of the images; None where it died of them."""
        decoder = self._free.get()
        try:
            decoder = decoder or self._start()
            return decoder.ask(images)
        except (EOFError, OSError):
            if decoder:
                self._running.discard(decoder)
                decoder.end()
            decoder = None
            return None
        finally:
            self._free.put(decoder)

    def _start(self) -> DecoderProcess:
        if self._closed:
            raise DecoderError("the decoders were closed")
        decoder = DecoderProcess.start(self.work)
        self._running.add(decoder)
        if self._closed:  # while it started, so that `close` did not see it
            decoder.kill()
        return decoder


def serve(pipe: Connection) -> None:
    """A decoder's life: what to do with images, then lists of them, until the other end is gone."""
    try:
        work = pipe.recv()
        pipe.send(None)
        while True:
            images = pipe.recv()
            pipe.send(_answer(work, images))
    except (EOFError, OSError):
        return


def _answer(work: Callable[[Any], Any], images: Sequence[Any]) -> list[Any] | Exception:
    """What the work makes of the images, or the error that ends the job: it is no fault of the images, nor of this process."""
    try:
        return [work(image) for image in images]
    except (FetchError, UsageError) as error:
        return error


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
