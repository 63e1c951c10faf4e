"""A stream of images in pieces, these in batches, and their lines in the order of the images again. No jax here."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from .line import Line, joined
from .prepared import Prepared

T = TypeVar("T")


class Piece(NamedTuple):
    """What the device reads at a time: an image, or a piece of one.

    Attributes:
        place: the piece's index among all pieces of all sources.
        source: the index of the image.
        item: the piece.
    """

    place: int
    source: int
    item: Prepared


def in_order(futures: Iterable[Future[T]], ahead: int) -> Iterator[T]:
    """The results of futures in order. Takes further ones from the iterator while at most `ahead` are under way."""
    waiting: deque[Future[T]] = deque()
    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # whoever stops early does not wait for what has not begun
            future.cancel()


def in_pieces(images: Iterable[Prepared], counts: deque[int]) -> Iterator[Piece]:
    """All pieces of all images, in order; how many each image has goes into `counts`, for `whole`."""
    place = itertools.count()
    for source, image in enumerate(images):
        counts.append(len(image.pieces))
        yield from (Piece(next(place), source, piece) for piece in image.pieces)


def whole(lines: Iterator[Line], counts: deque[int], drawn: bool) -> Iterator[Line]:
    """Puts the lines of pieces together to lines of images; `drawn` tells whether they were drawn at random."""
    for line in lines:
        yield joined([line, *itertools.islice(lines, counts.popleft() - 1)], drawn=drawn)


def batches(pieces: Iterator[Piece], size: int, together: int) -> Iterator[list[Piece]]:
    """Sorts `together` pieces at a time by length and cuts them into batches, the long ones first: no lane is to run a long batch
    when the others have nothing left to do.
    """
    while group := sorted(itertools.islice(pieces, together), key=lambda piece: -piece.item.aspect):
        yield from (group[start : start + size] for start in range(0, len(group), size))


def by_place(lines: Iterable[tuple[int, Line]]) -> Iterator[Line]:
    """The lines 0, 1, 2, ..., each as soon as those before it have come."""
    done: dict[int, Line] = {}
    first = 0
    for place, line in lines:
        done[place] = line
        while first in done:
            yield done.pop(first)
            first += 1
