"""Fonts for synthetic lines: faces found in a folder, loaded once a process, and asked what they can draw.

A face is one style of one family, in one file or in several that share its alphabet (fontsource ships "latin" and
"latin-ext" apart). A glyph that a font lacks is never drawn: `Face.can_draw` compares each character's bitmap with that
of a code point that no font has, so it needs no table parser and works for every format FreeType opens. Capitals-only
fonts show in the same way: their small letters, equal to the large ones, count as missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SUFFIXES = (".woff2", ".woff", ".ttf", ".otf")
_PROBE_SIZE = 24
_UNASSIGNED = "\U0010ffff"
_NO_ALTERNATES = "-calt"
"""Fonts for programs draw "!=" as one sign by contextual alternates; kerning and "fi" stay as print has them."""


@dataclass(frozen=True, order=True)
class Face:
    """One style of one family; `files` in the order in which a character is looked up."""

    family: str
    style: str
    files: tuple[str, ...]
    _found: dict[str, str | None] = field(default_factory=dict, init=False, compare=False, repr=False)

    def source(self, character: str) -> str | None:
        """The file that draws a character; None where no file does. A space is in the first file."""
        if character not in self._found:
            able = (file for file in self.files if character == " " or _draws(file, character))
            self._found[character] = next(able, None)
        return self._found[character]

    def can_draw(self, text: str) -> bool:
        return None not in map(self.source, text)


def find_faces(folder: str | Path, families: Sequence[str] | None = None) -> list[Face]:
    """All faces under a folder, sorted. Files that differ only in "-latin-" and "-latin-ext-" are one face.

    A family is the folder that holds the file; for files directly in `folder` it is their name up to "-".
    Raises FileNotFoundError where there is no font at all.
    """
    folder = Path(folder).expanduser()
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        family = path.parent.name if path.parent != folder else path.stem.split("-")[0]
        style = path.stem.replace("-latin-ext-", "-").replace("-latin-", "-")
        if families is None or family in families:
            found.setdefault((family, style), []).append(str(path))
    if not found:
        kinds = ", ".join(SUFFIXES)
        script = Path(__file__).parents[1] / "fetch_fonts.sh"
        raise FileNotFoundError(f"no fonts ({kinds}) under {folder}; `bash {script}` fetches free ones")
    for files in found.values():
        files.sort(key=lambda name: "-latin-ext-" in name)
    return [Face(family, style, tuple(files)) for (family, style), files in sorted(found.items())]


def draw_mask(face: Face, size: int, text: str, spacing: float = 0.0, features: Sequence[str] = ()) -> tuple[Image.Image, int]:
    """The text's coverage (mode "L", 255 = ink) and the row of its baseline; ValueError where a glyph is missing.

    Cut to the ink from left to right; from top to bottom to the ink and at least from the capitals' height to the
    baseline, so that "o" and "O", "." and "·" stay different whatever stands beside them.

    Args:
        size: px per em.
        spacing: extra px between characters; 0 keeps the font's own kerning.
        features: OpenType features to turn on where the font has them, as "onum" or "zero".
    """
    pieces = [run for piece in (text if spacing else [text]) for run in _runs(face, piece)]
    shaping, placed, x = [_NO_ALTERNATES, *features], [], float(size)
    for file, piece in pieces:
        placed.append((x, _load(file, size), piece))
        x += _load(file, size).getlength(piece, features=shaping) + spacing
    image = Image.new("L", (int(x) + size, 3 * size))
    pen, baseline = ImageDraw.Draw(image), 2 * size
    for x, font, piece in placed:
        pen.text((x, baseline), piece, fill=255, font=font, anchor="ls", features=shaping)
    box = image.getbbox()
    if box is None:
        raise ValueError(f"{face.family} {face.style} draws nothing for {text!r}")
    top, bottom = min(box[1], baseline - _cap_height(face.files[0], size)), max(box[3], baseline)
    return image.crop((box[0], top, box[2], bottom)), baseline - top


def _runs(face: Face, text: str) -> list[tuple[str, str]]:
    """(file, piece of the text) in order; a space stays with what stands before it."""
    runs: list[tuple[str, str]] = []
    for character in text:
        file = runs[-1][0] if runs and character == " " else face.source(character)
        if file is None:
            raise ValueError(f"{face.family} {face.style} has no glyph for {character!r}")
        if runs and runs[-1][0] == file:
            runs[-1] = (file, runs[-1][1] + character)
        else:
            runs.append((file, character))
    return runs


@cache
def _load(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.RAQM)


@cache
def _cap_height(file: str, size: int) -> int:
    return -int(_load(file, size).getbbox("H", anchor="ls")[1])


@cache
def _draws(file: str, character: str) -> bool:
    """Whether a file has a visible, advancing glyph of its own for a character.

    Some fonts take "^" or "`" for combining accents, which stand on the letter before them: those do not advance.
    """
    glyph = _glyph(file, character)
    if glyph in (_glyph(file, " "), _glyph(file, _UNASSIGNED)) or _load(file, _PROBE_SIZE).getlength(character) <= 0:
        return False
    capital = character.upper()
    return capital == character or len(capital) > 1 or glyph != _glyph(file, capital)


@cache
def _glyph(file: str, character: str) -> bytes:
    """The pixels of a character on a canvas that is the same for all."""
    image = Image.new("L", (3 * _PROBE_SIZE, 3 * _PROBE_SIZE))
    place = (_PROBE_SIZE, 2 * _PROBE_SIZE)
    ImageDraw.Draw(image).text(place, character, fill=255, font=_load(file, _PROBE_SIZE), anchor="ls")
    return image.tobytes()
