"""Pages of lines, drawn for the tests: columns, tilt, noise, uneven light, ruled paper; and where every line is."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    "the quick brown fox jumps over a lazy dog while many small boxes of fine paper were sent by post to every "
    "village along the river; nobody knew why, but 27 people signed for 1,350 parcels (or more) on Friday"
).split()


@dataclass(frozen=True)
class Layout:
    """How a page is drawn; tilt in degrees, noise in grey levels."""

    columns: int = 1
    tilt: float = 0.0
    noise: float = 0.0
    ruled: bool = False
    heading: bool = False
    shadow: bool = False
    size: int = 26
    leading: float = 1.35


@cache
def fonts() -> tuple[Path, ...]:
    """DejaVu from the system, or the same from matplotlib's package."""
    system = sorted(Path("/usr/share/fonts").rglob("DejaVuS*.ttf")) if Path("/usr/share/fonts").is_dir() else []
    if not system:
        import matplotlib

        system = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuS*.ttf"))
    names = ("DejaVuSans", "DejaVuSerif", "DejaVuSans-Oblique", "DejaVuSerif-Bold", "DejaVuSansMono")
    return tuple(path for path in system if path.stem in names)


def printed(*texts: str) -> Image.Image:
    """A page of lines, one below the other."""
    image, font = Image.new("RGB", (1300, 100 + 70 * len(texts)), "white"), ImageFont.truetype(fonts()[0], 32)
    for number, text in enumerate(texts):
        ImageDraw.Draw(image).text((60, 50 + 70 * number), text, fill=(20, 20, 20), font=font)
    return image


def random_layout(number: int) -> Layout:
    """Of 1 to 3 columns, tilted by up to 3 degrees; every fourth on ruled paper."""
    rng = np.random.default_rng(number)
    return Layout(
        columns=1 + number % 3, tilt=float(rng.uniform(-3, 3)), noise=float(rng.uniform(0, 25)), ruled=number % 4 == 3,
        heading=number % 2 == 1, shadow=number % 5 == 2, size=int(rng.integers(20, 32)), leading=float(rng.uniform(1.2, 1.7)),
    )  # fmt: skip


def draw_page(layout: Layout, seed: int) -> tuple[Image.Image, list[np.ndarray]]:
    """An A4 page at about 150 dpi, and the quadrilateral [4,2] of the ink of every line, in reading order."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (1240, 1754), int(rng.integers(225, 256)))
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(fonts()[seed % len(fonts())], layout.size)
    boxes = _text(pen, page.size, font, layout, rng)
    quads = [np.array([[a, b], [c, b], [c, d], [a, d]], float) for a, b, c, d in boxes]
    image, quads = _tilted(page, quads, layout.tilt)
    return Image.fromarray(_worn(np.asarray(image, float), layout, rng)).convert("RGB"), quads


def _text(pen, size, font, layout: Layout, rng) -> list[tuple[float, float, float, float]]:
    width, height = size
    margin, gutter, pitch = 100, 2.2 * layout.size, layout.size * layout.leading
    column = (width - 2 * margin - gutter * (layout.columns - 1)) / layout.columns
    boxes, top = [], 110.0
    if layout.heading:
        boxes.append(_write(pen, margin, top, "A heading across the whole page", font))
        top += 2.2 * pitch
    for number in range(layout.columns):
        left, y = margin + number * (column + gutter), top
        bottom = height - 110 - (rng.uniform(0, 500) if number + 1 == layout.columns else 0)
        while y + pitch < bottom:
            if layout.ruled:
                rule = round(y + 1.08 * layout.size)
                pen.line((left - 10, rule, left + column + 5, rule), fill=150, width=1)
            last = rng.random() < 0.12
            boxes.append(_write(pen, left, y, _sentence(font, column * (rng.uniform(0.15, 0.8) if last else 1), rng), font))
            y += pitch * (1.5 if last else 1)
    return boxes


def _sentence(font, room: float, rng) -> str:
    text = str(rng.choice(WORDS))
    while font.getlength(longer := f"{text} {rng.choice(WORDS)}") < room:
        text = longer
    return text


def _write(pen, x: float, y: float, text: str, font) -> tuple[float, float, float, float]:
    pen.text((x, y), text, fill=30, font=font)
    return pen.textbbox((x, y), text, font=font)


def _tilted(page: Image.Image, quads: list[np.ndarray], degrees: float) -> tuple[Image.Image, list[np.ndarray]]:
    turned = page.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=page.getpixel((0, 0)))
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    middle, new = np.array(page.size) / 2, np.array(turned.size) / 2
    return turned, [(quad - middle) @ turn + new for quad in quads]


def _worn(gray: np.ndarray, layout: Layout, rng) -> np.ndarray:
    if layout.shadow:
        gray = gray * np.linspace(1.0, 0.6, gray.shape[1])
    gray = gray + rng.normal(0, 1, gray.shape) * layout.noise
    if layout.noise > 10:  # specks
        rows, columns = (rng.integers(0, side, 300) for side in gray.shape)
        gray[rows, columns] = 20
    return np.clip(gray, 0, 255).astype(np.uint8)


def found_in_order(quads: list[np.ndarray], found: list[np.ndarray]) -> int:
    """How many drawn lines were found, each by a box of its own that holds its ink and little else, in the order drawn."""

    def extent(quad: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return quad.mean(0), (quad[1] - quad[0]), (quad[3] - quad[0])

    places = []
    for quad in quads:
        middle, along, down = extent(quad)
        for place, candidate in enumerate(found):
            other, other_along, other_down = extent(candidate)
            lengths = np.linalg.norm(along), np.linalg.norm(other_along)
            heights = np.linalg.norm(down), np.linalg.norm(other_down)
            offset = (other - middle) @ np.stack([along / lengths[0], down / heights[0]], axis=1)
            close = abs(offset[0]) < 0.04 * lengths[0] + heights[0] / 2 and abs(offset[1]) < 0.4 * heights[0]
            as_long = 0.9 < lengths[1] / lengths[0] < 1.1 + heights[0] * 1.5 / lengths[0]
            if close and as_long and 0.6 < heights[1] / heights[0] < 2.2:
                places.append(place)
                break
    return _longest_rising(places)


def _longest_rising(places: list[int]) -> int:
    import bisect

    ends: list[int] = []
    for place in places:
        at = bisect.bisect_left(ends, place)
        ends[at : at + 1] = [place]
    return len(ends)


def with_tilt(layout: Layout, degrees: float) -> Layout:
    return replace(layout, tilt=degrees)
