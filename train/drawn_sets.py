"""Drawn lines that no model is trained on, as a data set for every level: what `trocr-jax eval` and a run's evaluations read."""

from __future__ import annotations

from .config import SyntheticConfig
from .drawing import fonts, synthesis
from .sets.records import Record

LINES = 1000  # of every level, where nobody says how many


class DrawnSet:
    """`count` lines of one level, with texts that training does not see, in the fonts that are held out.

    Raises:
        FileNotFoundError: there are no such fonts.
    """

    def __init__(self, level: str, config: SyntheticConfig, count: int):
        faces = fonts.find_faces(config.held_out_fonts)
        self.lines = synthesis.heldout(level, count, config.seed, faces, config.max_length, config.min_length)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Record:
        image, text, about = self.lines[index]
        return Record(image, text, f"line {index} ({about['family']})")


def drawn_sets(config: SyntheticConfig, count: int | None = None) -> dict[str, DrawnSet]:
    """A set for every level, by its name."""
    return {level: DrawnSet(level, config, count or LINES) for level in synthesis.LEVELS}
