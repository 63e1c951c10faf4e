"""Synthetic text lines: text, font and damage in, an image and its label out, the same for the same (seed, index).

A line is drawn in four steps: coverage of the ink (`fonts.draw_mask`), its geometry (one mesh transform), the ink on
its paper, and what camera, scanner and file format did to it. Everything is gray until a table colours it at the end.
`LEVELS` says how much of each: "clean" is a rendered page or a good scan, "worn" an office copy or a receipt, "rough"
what a person still reads. Lines are drawn at about the height at which a model reads them: one costs about 2 ms.

Masks and images are Pillow's (width x height); arrays are float32 [height, width], ink coverage 0..1 or gray 0..255.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from .fonts import Face, draw_mask
from .texts import chance, collapse, draw_text, pick, weighted, whole

SIZES = (26, 40)
"""Font sizes in px per em; few, because each process keeps every face at every size. `_bend` scales further."""
HELD_OUT_SALT = 0x68656C64


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much damage: largest amounts in the units named, and probabilities."""

    tilt: float  # degrees
    slant: float  # px sideways per px of height
    curve: float  # share of the line's height
    perspective: float  # share by which one end may be larger
    stretch: float  # share of the width
    contrast: float  # smallest difference of ink and paper, gray levels
    blur: float  # sigma, px at a height of 48
    smear: float  # probability of motion blur
    noise: float  # sigma, gray levels
    jpeg: float  # probability
    quality: int  # lowest JPEG quality
    low_resolution: float  # probability
    low_height: int  # smallest height scaled down to, px
    bilevel: float  # probability of a black-and-white scan
    weight: float  # probability of thinner or thicker strokes
    fade: float  # probability
    gaps: float  # probability of missing ink
    paper: float  # probability of uneven light or texture
    speckle: float  # probability
    rule: float  # probability of an underline, and half of it of a form's line at an edge
    neighbour: float  # probability of parts of the line above or below


LEVELS = {
    "clean": Level(
        tilt=0.4, slant=0.0, curve=0.0, perspective=0.0, stretch=0.1, contrast=120, blur=0.5, smear=0.0, noise=3,
        jpeg=0.15, quality=70, low_resolution=0.1, low_height=26, bilevel=0.03, weight=0.05, fade=0.0, gaps=0.0,
        paper=0.15, speckle=0.0, rule=0.03, neighbour=0.05,
    ),
    "worn": Level(
        tilt=1.5, slant=0.1, curve=0.03, perspective=0.05, stretch=0.2, contrast=80, blur=1.1, smear=0.05, noise=10,
        jpeg=0.4, quality=35, low_resolution=0.3, low_height=19, bilevel=0.06, weight=0.3, fade=0.25, gaps=0.15,
        paper=0.5, speckle=0.15, rule=0.1, neighbour=0.15,
    ),
    "rough": Level(
        tilt=3.0, slant=0.2, curve=0.08, perspective=0.12, stretch=0.3, contrast=55, blur=1.6, smear=0.15, noise=22,
        jpeg=0.6, quality=15, low_resolution=0.45, low_height=15, bilevel=0.06, weight=0.4, fade=0.4, gaps=0.3,
        paper=0.8, speckle=0.3, rule=0.15, neighbour=0.25,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LineSource:
    """Endless synthetic lines: `source[index] -> (image, text, meta)`, equal in every process and order.

    Args:
        seed: any non-negative integer.
        faces: what to draw with (`fonts.find_faces`).
        levels: name of a level -> weight.
        max_length, min_length: characters of a label; a curriculum makes a new source with larger ones.
        salt: another stream for the same seed; `heldout` has its own, so that no training seed reaches its lines.
    """

    seed: int
    faces: tuple[Face, ...]
    levels: Mapping[str, float] = field(default_factory=lambda: {"clean": 0.3, "worn": 0.35, "rough": 0.35})
    max_length: int = 48
    min_length: int = 1
    salt: int = 0

    @cached_property
    def families(self) -> list[list[Face]]:
        return by_family(self.faces)

    def __getitem__(self, index: int) -> tuple[Image.Image, str, dict[str, str]]:
        """Line `index` (>= 0): an L or RGB image, its text, and {"level", "kind", "family", "style"}."""
        rng = np.random.default_rng((self.salt, self.seed, index))
        level = weighted(rng, self.levels)
        face = None
        while face is None:
            text, kind = draw_text(rng, self.max_length, self.min_length)
            face = choose_face(rng, self.families, text)
        image = _draw(text, rng, face, LEVELS[level])
        return image, text, {"level": level, "kind": kind, "family": face.family, "style": face.style}


def heldout(
    level: str, count: int, seed: int, faces: Sequence[Face], max_length: int = 48, min_length: int = 1
) -> list[tuple[Image.Image, str, dict[str, str]]]:
    """`count` lines of one level for evaluation: of a stream no training seed reaches.

    Line i has the same text and face at every level, so that levels differ in damage alone.
    """
    source = LineSource(seed, tuple(faces), {level: 1.0}, max_length, min_length, salt=HELD_OUT_SALT)
    return [source[index] for index in range(count)]


def draw_line(text: str, rng: Generator, faces: Sequence[Face], level: str | Level = "clean") -> Image.Image:
    """An image (L or RGB) of the text in one of the faces that have its glyphs; ValueError where none has."""
    face = choose_face(rng, by_family(faces), text)
    if face is None:
        raise ValueError(f"none of {len(faces)} faces has every glyph of {text!r}")
    return _draw(text, rng, face, LEVELS[level] if isinstance(level, str) else level)


def by_family(faces: Sequence[Face]) -> list[list[Face]]:
    groups: dict[str, list[Face]] = {}
    for face in faces:
        groups.setdefault(face.family, []).append(face)
    return list(groups.values())


def choose_face(rng: Generator, families: Sequence[Sequence[Face]], text: str) -> Face | None:
    """A face that can draw the text, uniform over families, then over the family's styles; None where there is none."""
    for _ in range(20):
        face = pick(rng, pick(rng, families))
        if face.can_draw(text):
            return face
    able = [face for styles in families for face in styles if face.can_draw(text)]
    return pick(rng, able) if able else None


def _between(rng: Generator, low: float, high: float) -> float:
    return low + rng.random() * (high - low)


def _spread(rng: Generator, largest: float, probability: float) -> float:
    """0, or with the probability given an amount in -largest..largest."""
    return _between(rng, -largest, largest) if chance(rng, probability) else 0.0


def _draw(text: str, rng: Generator, face: Face, level: Level) -> Image.Image:
    size, scale = pick(rng, SIZES), _between(rng, 0.7, 1.1)
    mask = _bend(_inked(text, rng, face, size, level), rng, level, scale)
    mask = _margins(mask, rng, level, face, round(size * scale))
    coverage = _damage_ink(np.asarray(mask, np.float32) / 255, rng, level)
    return _colour(_photograph(_print(coverage, rng, level), rng, level), rng)


def _inked(text: str, rng: Generator, face: Face, size: int, level: Level) -> Image.Image:
    """The text as a mask: letter spacing, old-style figures or slashed zeros in fonts that have them, an underline."""
    spacing = _between(rng, -0.03, 0.12) * size if chance(rng, 0.12) else 0.0
    features = (pick(rng, ("onum", "zero", "tnum")),) if chance(rng, 0.1) else ()
    mask, baseline = draw_mask(face, size, text, spacing, features)
    if not chance(rng, level.rule):
        return mask
    thickness, y = whole(rng, 1, 2), baseline + whole(rng, 2, max(3, size // 6))
    ruled = Image.new("L", (mask.width, max(mask.height, y + thickness)))
    ruled.paste(mask)
    ImageDraw.Draw(ruled).rectangle((0, y, mask.width, y + thickness - 1), fill=255)
    return ruled


def _bend(mask: Image.Image, rng: Generator, level: Level, scale: float) -> Image.Image:
    """Scale, stretch, slant, tilt, perspective and curve in one transform, onto a canvas that holds all of it."""
    width, height = mask.size
    tilt = np.deg2rad(_spread(rng, level.tilt * min(1.0, 12 * height / width), 0.7))
    slant, stretch = _spread(rng, level.slant, 0.3), 1 + _spread(rng, level.stretch, 0.6)
    curve, narrowing = _spread(rng, level.curve, 0.4) * height, _spread(rng, level.perspective, 0.4)
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    forward = rotation @ [[scale * stretch, scale * slant], [0, scale]]
    corners = forward @ [[0, width, width, 0], [0, 0, height, height]]
    room = 1 + scale * ((height / 2 + abs(curve)) / (1 - abs(narrowing)) - height / 2)
    origin = corners.min(1) - room
    columns, rows = np.ceil(corners.max(1) + room - origin).astype(int).tolist()
    strips = min(8, columns) if curve else 1  # a strip of no width cannot be mapped
    edges = np.round(np.linspace(0, columns, strips + 1))
    x, y = np.meshgrid(edges, [0.0, rows])
    u, v = np.tensordot(np.linalg.inv(forward), [x + origin[0], y + origin[1]], 1)
    across = np.clip(2 * u / width - 1, -1, 1)
    v = (v - height / 2) * (1 + narrowing * across) + height / 2 + curve * (1 - across**2)
    points, lefts = np.stack([u, v], -1).tolist(), edges.astype(int).tolist()
    mesh = []
    for i in range(strips):
        quad = (*points[0][i], *points[1][i], *points[1][i + 1], *points[0][i + 1])
        mesh.append(((lefts[i], 0, lefts[i + 1], rows), quad))
    return mask.transform((columns, rows), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _margins(mask: Image.Image, rng: Generator, level: Level, face: Face, size: int) -> Image.Image:
    """Paper around the ink, tight to loose; at its edges parts of a neighbouring line, or the line of a form."""
    loose = _between(rng, 0.05, 0.5) * size
    left, top, right, bottom = (1 + int(_between(rng, 0, loose)) for _ in range(4))
    canvas = Image.new("L", (mask.width + left + right, mask.height + top + bottom))
    canvas.paste(mask, (left, top))
    above = chance(rng, 0.5)
    room = (top if above else bottom) - 2
    if room > 0 and chance(rng, level.neighbour):
        part = _neighbour(rng, face, size, min(room, size // 3), above)
        x = whole(rng, -part.width // 2, canvas.width // 2)
        canvas.paste(part, (x, 0 if above else canvas.height - part.height))
    elif room > 0 and chance(rng, level.rule / 2):
        y = whole(rng, 0, room // 2)
        y = y if above else canvas.height - 1 - y
        ImageDraw.Draw(canvas).line((0, y, canvas.width, y), fill=255)
    return canvas


def _neighbour(rng: Generator, face: Face, size: int, shown: int, above: bool) -> Image.Image:
    """`shown` px of a neighbouring line: its feet where it stands above, else its heads."""
    letters = [letter for letter in "abdefghiklmnopqrstuvwyABEHKMNRST    " if face.can_draw(letter)]
    text = collapse("".join([pick(rng, letters) for _ in range(whole(rng, 6, 30))])) or letters[0]
    line, _ = draw_mask(face, min(SIZES, key=lambda known: abs(known - size)), text)
    start = line.height - shown if above else 0
    return line.crop((0, start, line.width, start + shown))


def _smooth(rng: Generator, shape: tuple[int, ...], cell: int) -> np.ndarray:
    """Smooth noise in 0..1: random values every `cell` px, interpolated."""
    height, width = shape
    values = rng.integers(0, 256, (max(2, height // cell + 1), max(2, width // cell + 1)), np.uint8)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _damage_ink(coverage: np.ndarray, rng: Generator, level: Level) -> np.ndarray:
    """Strokes thinner or thicker, faded in places, or interrupted."""
    if chance(rng, level.weight):
        shifted = np.roll(coverage, 1, int(chance(rng, 0.5)))
        thick = np.maximum(coverage, shifted) - coverage
        thin = 0.6 * (np.minimum(coverage, shifted) - coverage)
        coverage = coverage + (thick if chance(rng, 0.6) else thin) * np.float32(_between(rng, 0.3, 1))
    if chance(rng, level.fade):
        depth = np.float32(_between(rng, 0.2, 0.65))
        coverage = coverage * (1 - depth * _smooth(rng, coverage.shape, whole(rng, 6, 40)))
    if chance(rng, level.gaps):
        coverage = coverage * _gaps(rng, coverage.shape)
    return coverage


def _gaps(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """What share of the ink stays (float32): spots without ink, dead rows of a thermal head, or printer needles."""
    (height, width), choice, left = shape, rng.random(), _between(rng, 0, 0.55)
    if choice < 0.4:
        missing = _smooth(rng, shape, whole(rng, 2, 3)) < _between(rng, 0.1, 0.3)
    elif choice < 0.7:
        missing = (rng.random(height) < _between(rng, 0.02, 0.1))[:, None]
    else:
        pitch = whole(rng, 3, 4)
        missing = np.minimum(np.arange(height)[:, None] % pitch, np.arange(width)[None] % pitch) == 0
    return np.where(missing, np.float32(left), np.float32(1))


def _print(coverage: np.ndarray, rng: Generator, level: Level) -> np.ndarray:
    """Ink on paper, mostly dark on white, sometimes gray on gray or light on dark; uneven light, texture, specks."""
    paper = _between(rng, 225, 255) if chance(rng, 0.6) else _between(rng, max(level.contrast + 10, 140), 240)
    ink = _between(rng, 0, min(paper - level.contrast, 60 if chance(rng, 0.5) else 255))
    gray = np.float32(paper) + np.float32(ink - paper) * coverage
    if chance(rng, level.paper):
        gray += _paper(rng, gray.shape, _between(rng, 5, 0.6 * level.contrast))
    if chance(rng, level.speckle):
        _specks(gray, rng)
    return 255 - gray if chance(rng, 0.08) else gray


def _paper(rng: Generator, shape: tuple[int, ...], strength: float) -> np.ndarray:
    """Gray levels to add: a slope of light, blotches or grain, or both."""
    (height, width), shade = shape, np.zeros(shape, np.float32)
    if chance(rng, 0.6):
        down, across = (np.float32(_spread(rng, strength / 2, 1)) for _ in range(2))
        shade += down * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        shade += across * np.linspace(-1, 1, width, dtype=np.float32)
    if chance(rng, 0.6):
        shade -= np.float32(0.6 * strength) * _smooth(rng, shape, whole(rng, 3, 60))
    return shade


def _specks(gray: np.ndarray, rng: Generator) -> None:
    """Dust of one gray level, one or two pixels high, into the array."""
    height, width = gray.shape
    count, value = whole(rng, 1, max(2, height * width // 400)), _between(rng, 0, 255)
    rows, columns = rng.integers(0, height - 1, count), rng.integers(0, width, count)
    gray[rows, columns] = value
    if chance(rng, 0.5):
        gray[rows + 1, columns] = value


def _photograph(gray: np.ndarray, rng: Generator, level: Level) -> Image.Image:
    """Motion, focus, resolution, sensor noise, black and white, JPEG: in the order in which they happen."""
    if chance(rng, level.smear):
        axis, reach = int(chance(rng, 0.7)), whole(rng, 1, 2)
        gray = np.mean([np.roll(gray, shift, axis) for shift in range(-reach, reach + 1)], 0)
    image = Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))
    low = chance(rng, level.low_resolution)
    if chance(rng, 0.6):
        sigma = _between(rng, 0.1, level.blur) * (0.6 if low else 1.0) * image.height / 48
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    if low:
        image = _low_resolution(image, rng, level)
    if chance(rng, 0.6):
        noise = rng.standard_normal((image.height, image.width), np.float32)
        noisy = np.asarray(image, np.float32) + np.float32(_between(rng, 0.5, level.noise)) * noise
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if chance(rng, level.bilevel):
        image = _black_and_white(image, rng)
    return _jpeg(image, whole(rng, level.quality, 95)) if chance(rng, level.jpeg) else image


def _low_resolution(image: Image.Image, rng: Generator, level: Level) -> Image.Image:
    """Scaled down, and most often up again, as a small scan or a thumbnail is."""
    height = whole(rng, min(level.low_height, image.height), image.height)
    width = max(4, round(image.width * height / image.height))
    down = pick(rng, (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
    small = image.resize((width, height), down)
    up = pick(rng, (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
    return small.resize(image.size, up) if chance(rng, 0.8) else small


def _black_and_white(image: Image.Image, rng: Generator) -> Image.Image:
    """As a fax or a one-bit scan: cut near the middle between the darkest and the lightest level."""
    darkest, lightest = np.percentile(np.asarray(image), (2, 98)).tolist()
    threshold = darkest + (lightest - darkest) * _between(rng, 0.4, 0.65)
    return image.point([255 * (level > threshold) for level in range(256)])


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    image = Image.open(buffer)
    image.load()
    return image


def _colour(image: Image.Image, rng: Generator) -> Image.Image:
    """RGB in one case of three: dark and light ends get slightly different hues, gray levels lie between them."""
    if not chance(rng, 0.35):
        return image
    tints = (rng.random((2, 3)) - 0.5) * [[60.0], [40.0]]
    ramp = np.arange(256)
    dark, light = tints[:, :, None]
    tables = np.clip(ramp + dark * (1 - ramp / 255) + light * ramp / 255, 0, 255).astype(np.uint8)
    return Image.merge("RGB", [image.point(table.tolist()) for table in tables])
