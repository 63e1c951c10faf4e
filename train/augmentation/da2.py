"""The augmentation of the handwriting and receipt recipes: DA2 of the TrOCR code.

One of seven operations, each with probability 1/7, on the training split only and before the resize of the checkpoint's
own preprocessing (github.com/microsoft/unilm, trocr, "DA2"). Images are Pillow's, RGB, dark text on light paper.
Scene text has its own set in `rand_augment`.

The recipe counts on a resize that stretches: a square of 128 pixels and a line turned by 10 degrees become large again. For a
model that keeps the aspect ratio, two operations have a form that leaves a long line legible, `LINES`.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter
from scipy.ndimage import correlate1d

Operation = Callable[[Image.Image, Generator], Image.Image]

INK = 50
"""Gray levels below this are ink to `underline`."""


def da2(image: Image.Image, rng: Generator, stretched: bool = True) -> Image.Image:
    """The image (RGB) through one of the seven operations; sizes differ afterwards, the checkpoint's resize follows.

    Args:
        stretched: whether that resize ignores the aspect ratio, as the original's does.
    """
    operations = list((DA2 if stretched else DA2 | LINES).values())
    return operations[int(rng.integers(len(operations)))](image.convert("RGB"), rng)


def rotate(image: Image.Image, rng: Generator) -> Image.Image:
    """By -10..10 degrees onto a larger white canvas, nearest pixel."""
    return _rotated(image, rng.uniform(-10, 10))


def tilt(image: Image.Image, rng: Generator) -> Image.Image:
    """`rotate`, with a smaller angle for a long image."""
    return _rotated(image, eased(rng.uniform(-10, 10), image))


def _rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.NEAREST, expand=True, fillcolor=(255, 255, 255))


def eased(degrees: float, image: Image.Image) -> float:
    """The angle that lifts the ends of a long image as far as `degrees` lift those of a square of its height."""
    share = min(image.size) / max(image.size)
    return degrees if share == 1 else float(np.rad2deg(np.arcsin(np.sin(np.deg2rad(degrees)) * share)))


def blur(image: Image.Image, rng: Generator) -> Image.Image:
    """Gaussian of three taps, sigma 0.1..2."""
    return gaussian(image, rng.uniform(0.1, 2.0), taps=3)


def gaussian(image: Image.Image, sigma: float, taps: int) -> Image.Image:
    """A Gaussian cut to an odd number of taps, edges mirrored: what torchvision's GaussianBlur computes."""
    weights = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / sigma**2)
    weights /= weights.sum()
    pixels = np.asarray(image, np.float32)
    for axis in (0, 1):
        pixels = correlate1d(pixels, weights, axis, mode="mirror")
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def lighten(image: Image.Image, rng: Generator) -> Image.Image:
    """The lightest of 3 x 3 pixels: dark strokes get thinner ("dilation" in the original, of the paper)."""
    return image.filter(ImageFilter.MaxFilter(3))


def darken(image: Image.Image, rng: Generator) -> Image.Image:
    """The darkest of 3 x 3 pixels: dark strokes get thicker ("erosion")."""
    return image.filter(ImageFilter.MinFilter(3))


def downscale(image: Image.Image, rng: Generator) -> Image.Image:
    """To 128 x 128, a third of the input of the original, nearest pixel; the resize that follows scales it up again."""
    return image.resize((128, 128), Image.Resampling.NEAREST)


def reduce(image: Image.Image, rng: Generator) -> Image.Image:
    """To a third of its own size, nearest pixel."""
    width, height = (max(1, round(side / 3)) for side in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST)


def underline(image: Image.Image, rng: Generator) -> Image.Image:
    """A black line, three pixels high, that ends on the lowest row with ink and is as long as the ink; none without."""
    pixels = np.array(image)
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < INK)
    if rows.size:
        bottom = rows.max()
        pixels[max(0, bottom - 2) : bottom + 1, columns.min() : columns.max() + 1] = 0
    return Image.fromarray(pixels)


def keep(image: Image.Image, rng: Generator) -> Image.Image:
    return image


DA2: dict[str, Operation] = {
    "rotate": rotate,
    "blur": blur,
    "dilation": lighten,
    "erosion": darken,
    "downscale": downscale,
    "underline": underline,
    "keep": keep,
}
LINES: dict[str, Operation] = {"rotate": tilt, "downscale": reduce}
