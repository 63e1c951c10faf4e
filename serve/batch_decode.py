"""Decoding images on all cores, in processes of their own: threads of one process hold each other up in Python's lock.

A decoder is `python -m trocr_jax.serve.batch_decode FD`: it imports no jax, takes lists of images from its end of a pipe, and
ends when the other end is gone, however its parent died. One that a hostile image kills is replaced, and that image named.
"""

from __future__ import annotations

import multiprocessing
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

from trocr_jax.images import ImageProcessor

from .batch_prepare import Decoded, Image, decode


class DecoderError(ValueError):
    """No decoding process can be had."""


@dataclass
class Decoder:
    """One process and our end of its pipe."""

    process: subprocess.Popen[bytes]
    pipe: Connection

    @classmethod
    def start(cls, processor: ImageProcessor, pages: bool) -> Decoder:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            command = [sys.executable, "-m", "trocr_jax.serve.batch_decode", str(theirs.fileno())]
            # a session of its own: Ctrl-C is for the parent, which then closes the pipe
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
        decoder = cls(process, ours)
        try:
            ours.send((processor, pages))
            ours.recv()
        except (EOFError, OSError):
            decoder.end()
            raise DecoderError("a decoding process did not start; its own message is above") from None
        return decoder

    def ask(self, images: Sequence[Image]) -> list[Decoded]:
        """Raises EOFError or OSError where the process has died."""
        self.pipe.send(images)
        return self.pipe.recv()

    def end(self) -> None:
        self.pipe.close()
        self.process.wait()


class Decoders:
    """So many processes, each started when it is first needed.

    Args:
        processor: of the model.
        count: processes.
        pages: the images are pages, whose lines are to be found.
    """

    def __init__(self, processor: ImageProcessor, count: int, pages: bool = False):
        self.processor, self.count, self.pages = processor, count, pages
        self._free: queue.SimpleQueue[Decoder | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)
        self._pool = ThreadPoolExecutor(count, "decoder")

    def submit(self, images: Sequence[Image]) -> Future[list[Decoded]]:
        """The images as `decode` gives them, in order."""
        return self._pool.submit(self._decode, images)

    def close(self) -> None:
        """Ends the processes; what was not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
        for _ in range(self.count):
            if decoder := self._free.get():
                decoder.end()

    def _decode(self, images: Sequence[Image]) -> list[Decoded]:
        decoded = self._ask(images)
        if decoded is not None:
            return decoded
        alone = [self._ask([image]) for image in images]  # find the one that kills
        return [found[0] if found else Decoded.failed("the image crashed its decoder") for found in alone]

    def _ask(self, images: Sequence[Image]) -> list[Decoded] | None:
        """None where the decoder died of it."""
        decoder = self._free.get()
        try:
            decoder = decoder or Decoder.start(self.processor, self.pages)
            return decoder.ask(images)
        except (EOFError, BrokenPipeError, ConnectionError):
            if decoder:
                decoder.end()
            decoder = None
            return None
        finally:
            self._free.put(decoder)


def serve(pipe: Connection) -> None:
    """A decoder's life: the processor and what images are, then lists of them, until the other end is gone."""
    try:
        processor, pages = pipe.recv()
        pipe.send(None)
        while True:
            batch = pipe.recv()
            pipe.send([decode(image, processor, pages) for image in batch])
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
