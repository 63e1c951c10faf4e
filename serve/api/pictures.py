"""From an image of a request to what an engine reads: fetched where need be, decoded by threads, a page cut into its lines."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from trocr_jax import images
from trocr_jax.cores import usable_cores
from trocr_jax.page import Layout, prepare_page
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.prepared import Prepared
from trocr_jax.reader import Reader

from .errors import ApiError, bad_request
from .fetch import Fetcher
from .limits import Limits
from .sources import RequestImage

R = TypeVar("R")

SMALL = 4_000_000  # pixels
_POOLS = "images"
_IDLE_SECONDS = 1.0  # for threads without an image to end by themselves
TOO_LARGE = str(images.ImageError("too_large"))


@dataclass(frozen=True)
class Picture:
    """An image of a request, ready for the device.

    Attributes:
        lines: the line that it is; of a page all that were found, in reading order.
        layout: where they are on the page; None of an image that was not read as a page.
        error: why there are none.
    """

    lines: Sequence[Prepared] = ()
    layout: Layout | None = None
    error: str | None = None


Decode = Callable[[bytes, int], Picture]
"""The picture in the bytes of a file, if it has no more pixels than this. Runs in a thread, and may raise ApiError."""


def decode_line(reader: Reader, content: bytes, most: int) -> Picture:
    """An image of one line."""
    line = reader.prepare(content, most)
    return Picture(error=line.error) if line.error else Picture([line])


def decode_page(processor: ImageProcessor, admit: Callable[[int], object], content: bytes, most: int) -> Picture:
    """A page; `admit` is told the number of its lines before they take memory, and may raise."""
    try:
        layout, lines = prepare_page(images.load(content, most), processor, admit)
    except images.ImageError as error:
        return Picture(error=str(error))
    except ApiError:
        raise
    except Exception as error:  # ours: its text is not for clients
        logging.getLogger(__name__).exception("a page could not be prepared")
        return Picture(error=f"the page could not be prepared ({type(error).__name__})")
    return Picture(lines, layout)


class Pictures:
    """The threads that decode, and what is in memory for them: an image a core, and one large one.

    Args:
        hosts: those from which images may be fetched by URL.
        decoded: called for every image whose pixels were decoded.
    """

    def __init__(self, limits: Limits, hosts: Sequence[str], decoded: Callable[[], object]):
        self.fetcher = Fetcher(hosts, limits.url_bytes, limits.url_seconds)
        self._fetched = asyncio.Semaphore(max(1, limits.bodies_bytes // limits.url_bytes))  # images from URLs in memory
        self._most, self._decoded = min(limits.pixels, images.MAX_PIXELS), decoded
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix=_POOLS)
        self._large = ThreadPoolExecutor(1, thread_name_prefix=f"{_POOLS}-large")

    async def prepare(self, source: RequestImage, decode: Decode) -> Picture | ApiError:
        """An image of a request, or what is wrong with it."""
        try:
            picture = await (self._fetch(source, decode) if source.remote else self._in_pool(source, decode))
        except ApiError as error:
            return error
        if picture.error:
            return bad_request(f"not a readable image: {picture.error}", source.param, "invalid_image")
        return picture

    async def close(self) -> None:
        """Ends the threads, without waiting for an image that takes its time, see `busy`."""
        for pool in (self._pool, self._large):
            pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + _IDLE_SECONDS
        while time.monotonic() < until and self.busy:
            await asyncio.sleep(0.01)
        await self.fetcher.close()

    @property
    def busy(self) -> bool:
        """Whether a thread that prepares images is alive."""
        return any(thread.name.startswith(_POOLS) for thread in threading.enumerate())

    async def _fetch(self, source: RequestImage, decode: Decode) -> Picture:
        """Fetches an image from a URL and decodes it. It keeps its place among `_fetched` as long as its bytes are in memory, or
        images would pile up before the pool.
        """
        async with self._fetched:
            content = await self.fetcher.fetch(str(source.content), source.param)
            return await self._in_pool(replace(source, content=content), decode)

    async def _in_pool(self, source: RequestImage, decode: Decode) -> Picture:
        """Decodes as many images at once as there are cores, but only one large one, or memory would grow with the cores."""

        def look() -> tuple[bytes, Picture]:
            content = source.decode()
            return content, self._counted(decode, content, min(self._most, SMALL))

        content, picture = await _run(self._pool, look)
        if self._most > SMALL and _is_too_large(picture):  # by its header: nothing of it was decoded
            picture = await _run(self._large, partial(self._counted, decode, content, self._most))
        return picture

    def _counted(self, decode: Decode, content: bytes, most: int) -> Picture:
        picture = decode(content, most)
        if not _is_too_large(picture):
            self._decoded()
        return picture


async def _run(pool: ThreadPoolExecutor, work: Callable[[], R]) -> R:
    """What the work gives, in a thread of the pool. Of work that nobody waits for any more nothing is kept: the pool itself would
    hold it, and its image's bytes, until a thread comes to it.
    """
    waiting = [work]
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: waiting.pop()())
    finally:
        waiting.clear()


def _is_too_large(picture: Picture) -> bool:
    return (picture.error or "").startswith(TOO_LARGE)


def in_loop(call: Callable[[int], R]) -> Callable[[int], R]:
    """A function for threads that has this event loop make the call, and gives its result or raises its error."""
    loop = asyncio.get_running_loop()

    async def made(count: int) -> R:
        return call(count)

    return lambda count: asyncio.run_coroutine_threadsafe(made(count), loop).result()
