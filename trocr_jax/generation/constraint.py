"""What a text may be: an automaton over tokens, of which decoding takes one step a token (Willard and Louf, arXiv 2307.09702).

Letters: B rows, V vocabulary, Q states, C classes of tokens (those of one class lead from every state to the same one).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

NOWHERE = -1
"""In place of a state: this token may not follow."""

LARGEST = 1 << 22
"""Most entries of a table, which is written into every program that it holds: 16 MB."""


@dataclass(frozen=True, eq=False, repr=False)
class Constraint:
    """An automaton in whose state 0 every text begins. Two are equal where their tables are, and share a compiled program.

    Attributes:
        name: what it is called in messages.
        classes: [V] int32, the class of each token. Class 0 may never follow: rows of a model beyond these V are of it.
        table: [Q,C] int32, the state that follows a state and a class of tokens, or NOWHERE.
    """

    name: str
    classes: np.ndarray
    table: np.ndarray

    @classmethod
    def from_edges(cls, name: str, edges: Iterable[tuple[int, int, int]], start: int, end: int) -> Constraint:
        """From edges (state, token, next state) in any numbering; those that are not on a path from start to end are left out.

        Raises:
            ValueError: there is no such path, or the table would have more than LARGEST entries.
        """
        state, token, target = np.array(list(edges), np.int64).reshape(-1, 3).T
        kept = np.intersect1d(_reached(start, state, target), _reached(end, target, state))
        if start not in kept:
            raise ValueError(f"{name} allows no text at all")
        number = {own: place for place, own in enumerate([start, *kept[kept != start].tolist()])}
        whole = np.isin(state, kept) & np.isin(target, kept)
        state, target = (np.array([number[s] for s in x[whole].tolist()], np.int32) for x in (state, target))
        return cls(name, *_classified(name, state, token[whole], target, len(number)))

    def __post_init__(self) -> None:
        states, classes = self.table.shape
        if self.classes.min() < 0 or self.classes.max() >= classes or self.table.min() < NOWHERE or self.table.max() >= states:
            raise ValueError(f"{self.name}: classes must lie in 0..{classes - 1}, states in -1..{states - 1}")

    def restrict(self, scores: Any, ruled: Any, states: Any) -> Any:
        """Scores [B,V] of rows in states [B]: -inf where a token may not follow, elsewhere what other rules have made of them
        (`ruled`); or, where those forbid all that may follow, the scores as they were.

        For numpy arrays the result is a numpy array, here and in `after`.

        Raises ValueError where the model has fewer tokens, V, than the constraint knows.
        """
        xp: Any = _namespace(states)
        allowed = xp.asarray(self._allowed)[states][:, self._padded(scores.shape[-1])]
        left = xp.where(allowed, ruled, -xp.inf)
        if ruled is scores:
            return left
        nothing = xp.isneginf(left.max(-1, keepdims=True))
        return xp.where(nothing & allowed, scores, left)

    def after(self, states: Any, tokens: Any) -> Any:
        """The states after tokens, both of the same shape; after a token that may not follow, an arbitrary state."""
        xp: Any = _namespace(states)
        return xp.asarray(self.table)[states, xp.asarray(self.classes)[tokens]].clip(min=0)

    def __repr__(self) -> str:
        return f"Constraint({self.name})"

    def _padded(self, tokens: int) -> np.ndarray:
        """The classes of all tokens of a model, which may have more than the constraint knows."""
        if tokens < len(self.classes):
            raise ValueError(f"{self.name} is for a tokenizer of {len(self.classes)} tokens, the model has {tokens}")
        return np.pad(self.classes, (0, tokens - len(self.classes)))

    @cached_property
    def _allowed(self) -> np.ndarray:
        """[Q,C] bool"""
        return self.table != NOWHERE

    @cached_property
    def _content(self) -> tuple[Any, ...]:
        return self.table.shape, self.classes.tobytes(), self.table.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def _namespace(states: Any) -> ModuleType:
    return np if isinstance(states, np.ndarray) else jnp


def _reached(start: int, state: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The states, ascending, that edges lead to from the start, itself included."""
    low, high = min(state.min(initial=0), target.min(initial=0)), max(state.max(initial=0), target.max(initial=0))
    width = high - low + 1  # both ends as one number: numpy finds distinct pairs ten times as slowly
    sources, targets = (low + end for end in np.divmod(np.unique((state - low) * width + target - low), width))
    reached = np.array([start])
    while len(more := np.union1d(reached, targets[np.isin(sources, reached)])) > len(reached):
        reached = more
    return reached


def _classified(
    name: str, state: np.ndarray, token: np.ndarray, target: np.ndarray, states: int
) -> tuple[np.ndarray, np.ndarray]:
    """Classes [V] and table [Q,C] of edges: tokens with the same edges are one class."""
    order = np.lexsort((state, token))
    state, token, target = state[order], token[order], target[order]
    tokens, starts = np.unique(token, return_index=True)
    of_class: dict[tuple[bytes, bytes], int] = {}
    classes, columns = np.zeros(tokens[-1] + 1, np.int32), []
    for index, own, next_ones in zip(tokens, np.split(state, starts[1:]), np.split(target, starts[1:]), strict=True):
        key = own.tobytes(), next_ones.tobytes()
        if key not in of_class:
            of_class[key] = len(of_class) + 1
            columns.append((own, next_ones))
        classes[index] = of_class[key]
    if states * (len(columns) + 1) > LARGEST:
        raise ValueError(f"{name} is too large: {states:,} states and {len(columns):,} kinds of tokens; a shorter one may do")
    table = np.full((states, len(columns) + 1), NOWHERE, np.int32)
    for column, (own, next_ones) in enumerate(columns, start=1):
        table[own, column] = next_ones
    return classes, table
