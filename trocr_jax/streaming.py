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
        last: whether it is the last one of its image.
    """

    place: int
    source: int
    item: Prepared
    last: bool


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


def in_pieces(images: Iterable[Prepared]) -> Iterator[Piece]:
    """All pieces of all images, in order."""
    place = itertools.count()
    for source, image in enumerate(images):
        *others, last = image.pieces
        yield from (Piece(next(place), source, piece, last=False) for piece in others)
        yield Piece(next(place), source, last, last=True)


def whole(read: Iterable[tuple[Piece, Line]], drawn: bool) -> Iterator[Line]:
    """Puts the lines of pieces, in order, together to lines of images; `drawn` tells whether they were drawn at random."""
    lines: list[Line] = []
    for piece, line in read:
        lines.append(line)
        if piece.last:
            yield joined(lines, drawn=drawn)
            lines = []


def batches(pieces: Iterator[Piece], size: int, together: int) -> Iterator[list[Piece]]:
    """Sorts `together` pieces at a time by length and cuts them into batches, the long ones first: no lane is to run a long batch
    when the others have nothing left to do.
    """
    while group := sorted(itertools.islice(pieces, together), key=lambda piece: -piece.item.aspect):
        yield from (group[start : start + size] for start in range(0, len(group), size))


def by_place(read: Iterable[tuple[Piece, Line]]) -> Iterator[tuple[Piece, Line]]:
    """The pieces 0, 1, 2, ... with their lines, each as soon as those before it have come."""
    done: dict[int, tuple[Piece, Line]] = {}
    first = 0
    for piece, line in read:
        done[piece.place] = piece, line
        while first in done:
            yield done.pop(first)
            first += 1
