"""The augmentation of the scene-text recipe: RandAugment over eight groups of image damage.

With probability 1/2 an image stays as it is; else three of the eight groups are drawn without replacement, one
operation of each, with a magnitude 0, 1 or 2. Parameters are those of the TrOCR code (github.com/microsoft/unilm,
trocr), which took them from straug (Atienza 2021) and ImageNet-C (Hendrycks & Dietterich 2019); slips of the original
that decide what a model sees are kept and named. Three things are done differently, with the same parameters: curves are
bent in closed form instead of by splines, glass blur takes neighbours instead of swapping them one by one, and frost is
drawn, since its photographs are not ours.

The recipe has every image squeezed to a square. For models that keep the aspect ratio images keep their size, and what moves
parts of a long one moves them as far as in a square of its height: letters would be torn apart otherwise.

Operations take an RGB image, the Generator and the magnitude, and return an RGB image of the same size. Inside,
arrays are float [height, width, 3] in 0..1.
"""

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from .da2 import eased, gaussian

Operation = Callable[[Image.Image, Generator, int], Image.Image]


def rand_augment(image: Image.Image, rng: Generator, stretched: bool = True) -> Image.Image:
    """The image as RGB, damaged in half of all cases.

    Args:
        stretched: whether to stretch it to 384 x 384 first (bicubic), as the original does; otherwise it keeps its size.
    """
    image = image.convert("RGB")
    image = image.resize((384, 384), Image.Resampling.BICUBIC) if stretched else image
    if rng.random() < 0.5:
        return image
    for group in rng.choice(len(GROUPS), 3, replace=False):
        operations = list(list(GROUPS.values())[group].values())
        image = operations[int(rng.integers(len(operations)))](image, rng, int(rng.integers(3)))
    return image


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(array, 0, 1) * 255).astype(np.uint8))


# process


def posterize(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    return ImageOps.posterize(image, (1, 3, 6)[m] + int(rng.integers(2)))


def solarize(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    return ImageOps.solarize(image, int(rng.integers((64, 128, 192)[m], (128, 192, 256)[m])))


def invert(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    return ImageOps.invert(image)


def nothing(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Equalize and AutoContrast: the original drops their result, so the published models never saw one."""
    return image


def _enhance(kind: type, image: Image.Image, rng: Generator, m: int) -> Image.Image:
    return kind(image).enhance(rng.uniform((0.1, 0.7, 1.3)[m], (0.7, 1.3, 1.9)[m]))


# camera


def contrast(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Less contrast, about the mean of each channel."""
    x = _array(image)
    mean = x.mean((0, 1))
    return _image((x - mean) * (0.4, 0.3, 0.2)[m] + mean)


def brightness(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """More V of HSV."""
    x = _array(image)
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + (0.1, 0.2, 0.3)[m], 1)
    return _image(np.where(value > 0, x / np.maximum(value, 1e-6) * raised, raised))


def jpeg(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=(25, 18, 15)[m])
    return Image.open(buffer).convert("RGB")


def pixelate(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    share = (0.6, 0.5, 0.4)[m]
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


# noise


def gaussian_noise(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    x, low = _array(image), (0.08, 0.1, 0.12)[m]
    return _image(x + rng.uniform(low, low + 0.03) * rng.standard_normal(x.shape, np.float32))


def shot_noise(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    low = (13, 8, 3)[m]
    photons = rng.uniform(low, low + 7)
    return _image(rng.poisson(_array(image) * photons) / photons)


def impulse_noise(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Salt and pepper, half of each, in every channel by itself."""
    x, low = _array(image), (0.03, 0.07, 0.11)[m]
    amount, draw = rng.uniform(low, low + 0.04), rng.random(x.shape)
    return _image(np.where(draw < amount, (draw < amount / 2).astype(np.float32), x))


def speckle_noise(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    x, low = _array(image), (0.15, 0.2, 0.25)[m]
    return _image(x + x * rng.uniform(low, low + 0.05) * rng.standard_normal(x.shape, np.float32))


# blur


def gaussian_blur(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """31 taps. Magnitude 2 draws one of the three sigmas: the original compares it with the wrong length."""
    sigmas = (0.5, 1.0, 2.0)
    return gaussian(image, sigmas[m] if m < 2 else sigmas[int(rng.integers(3))], taps=31)


def defocus_blur(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """A disk of radius 2, 3 or 4. Its own smoothing, sigma 0.1 over 3 x 3, changes it by less than 1e-21."""
    radius = (2, 3, 4)[m]
    across = np.arange(-radius, radius + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float32)[..., None]
    padded = np.pad(_array(image), ((radius, radius), (radius, radius), (0, 0)), "reflect")
    return _image(fftconvolve(padded, disk / disk.sum(), "valid", axes=(0, 1)))


def motion_blur(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    radius, sigma = ((10, 3), (12, 4), (14, 5))[m]
    return _image(_smeared(_array(image), radius, sigma, rng.uniform(-45, 45)))


def _smeared(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Half a Gaussian of 2 radius + 1 taps laid along a direction, edges repeated (ImageMagick's motion blur)."""
    reach = 2 * radius + 1
    weights = np.exp(-(np.arange(reach) ** 2) / (2 * sigma**2))
    angle, (height, width) = np.deg2rad(degrees), x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), *[(0, 0)] * (x.ndim - 2)), "edge")
    total = np.zeros_like(x)
    for step, weight in enumerate(weights / weights.sum()):
        row, column = reach + round(step * np.sin(angle)), reach + round(step * np.cos(angle))
        total += np.float32(weight) * padded[row : row + height, column : column + width]
    return total


def glass_blur(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Smoothed, each pixel twice taken from itself or its upper or left neighbour, smoothed again."""
    sigma = (0.7, 0.75, 0.8)[m]
    x = gaussian_filter(_array(image), (sigma, sigma, 0))
    rows, columns = np.indices(x.shape[:2])
    for _ in range(2):
        up, left = rng.integers(0, 2, (2, *x.shape[:2]))
        x = x[np.maximum(rows - up, 0), np.maximum(columns - left, 0)]
    return _image(gaussian_filter(x, (sigma, sigma, 0)))


def zoom_blur(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    factors = (np.arange(1, 1.105, 0.01), np.arange(1, 1.155, 0.01), np.arange(1, 1.205, 0.02))[m]
    factors = 1 + (factors - 1) * min(image.size) / max(image.size)
    total = _array(image) + sum(_array(_zoomed(image, float(factor))) for factor in factors)
    return _image(total / (len(factors) + 1))


def _zoomed(image: Image.Image, factor: float) -> Image.Image:
    """The middle of the image, `factor` times as large."""
    inset = [side * (1 - 1 / factor) / 2 for side in image.size]
    box = (inset[0], inset[1], image.width - inset[0], image.height - inset[1])
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


# weather


def fog(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7))[m]
    x = _array(image)
    lightest = x.max()
    return _image((x + amount * _plasma(rng, x.shape[:2], decay)[..., None]) * lightest / (lightest + amount))


def _plasma(rng: Generator, shape: tuple[int, ...], decay: float) -> np.ndarray:
    """A cloud in 0..1 by the diamond-square algorithm on a torus; each halving divides the jitter by `decay`. Along a line it
    repeats itself: made as large as the line is long, it would be flat across the line, and take gigabytes.
    """
    side = 1 << (min(shape) - 1).bit_length()
    cloud, step, jitter = np.zeros((side, side), np.float32), side, 1.0
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        middles = (rows + np.roll(rows, -1, 1)) / 4 + rng.uniform(-jitter, jitter, corners.shape)
        cloud[half::step, half::step] = middles
        beside = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        below = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        cloud[::step, half::step] = beside / 4 + rng.uniform(-jitter, jitter, corners.shape)
        cloud[half::step, ::step] = below / 4 + rng.uniform(-jitter, jitter, corners.shape)
        step, jitter = half, jitter / decay
    cloud = cloud[np.ix_(*(np.arange(length) % side for length in shape))]
    return (cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-6)


def snow(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Flakes blurred by their fall, drawn twice, on an image turned pale (seven parameters as in ImageNet-C)."""
    mean, spread, zoom, least, radius, sigma, share = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    )[m]
    x = _array(image)
    grain = Image.fromarray((np.clip(rng.normal(mean, spread, x.shape[:2]), 0, 1) * 255).astype(np.uint8))
    flakes = _array(_zoomed(grain, zoom))
    flakes = _smeared(np.where(flakes < least, 0, flakes), radius, sigma, rng.uniform(-135, -45))[..., None]
    pale = np.maximum(x, x.mean(-1, keepdims=True) * 1.5 + 0.5)
    return _image(share * x + (1 - share) * pale + flakes + flakes[::-1, ::-1])


def frost(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Blended with needles of ice; both weights apply twice, as in the original."""
    keeps, adds = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7))[m]
    needles = 1 - np.abs(2 * _plasma(rng, (image.height, image.width), 1.6) - 1)
    ice = needles[..., None] ** 3 * np.array([0.85, 0.93, 1.0], np.float32)
    return _image(keeps**2 * _array(image) + adds**2 * ice)


def rain(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Gray strokes of one slant within 60 degrees of vertical, 5 to 9 px long."""
    count, image = int(rng.integers((50, 70, 90)[m], (70, 90, 110)[m])), image.copy()
    angle, length = np.deg2rad(rng.uniform(-60, 60)), int(rng.integers(5, 10))
    pen = ImageDraw.Draw(image)
    for x, y in rng.random((count, 2)) * image.size:
        pen.line((x, y, x + length * np.sin(angle), y + length * np.cos(angle)), fill=(200, 200, 200))
    return image


def shadow(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """A quadrilateral from edge to edge, darker by its alpha."""
    alpha, (width, height) = int(rng.integers((64, 96, 128)[m], (96, 128, 160)[m])), image.size
    left, right = rng.uniform(0, width / 2, 2), rng.uniform(width / 2, width, 2)
    mask = Image.new("L", image.size)
    corners = [(left[0], 0), (right[0], 0), (right[1], height), (left[1], height)]
    ImageDraw.Draw(mask).polygon(corners, fill=alpha)
    return Image.composite(Image.new("RGB", image.size), image, mask)


# pattern


def _grid(vertical: bool, horizontal: bool, image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Black lines, one px wide, 3 - m px apart."""
    x, step = np.array(image), 4 - m
    if vertical:
        x[:, 1::step] = 0
    if horizontal:
        x[1::step] = 0
    return Image.fromarray(x)


def _rings(shape: str, image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Black outlines of rectangles or ellipses inside each other, 3 - m px apart."""
    image, step = image.copy(), 4 - m
    draw = getattr(ImageDraw.Draw(image), shape)
    for inset in range(0, min(image.size) // 2, step):
        draw((inset, inset, image.width - 1 - inset, image.height - 1 - inset), outline=(0, 0, 0))
    return image


# warp


def curve(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Bent onto an arc, up or down: outer radius 1.1, 0.95 or 0.8 (+ 0.1) of a 224 px square, 0.4 to 0.5 thick.

    A long image is bent at a height of 224, with the radius that makes its arc as high as the square's.
    """
    size, flip, low = image.size, rng.random() < 0.5, (1.1, 0.95, 0.8)[m]
    width = round(224 * max(1, image.width / image.height))
    radius, thick = 224 * rng.uniform(low, low + 0.1) * (width / 224) ** 2, 224 * rng.uniform(0.4, 0.5)
    middle, half = width / 2, np.arcsin(min(1.0, width / 2 / radius))

    def source(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angle, distance = np.arctan2(x - middle, radius - y), np.hypot(x - middle, radius - y)
        return middle + middle * angle / half, 224 * (radius - distance) / thick

    flat = image.resize((width, 224), Image.Resampling.BICUBIC)
    flat = ImageOps.flip(flat) if flip else flat
    bent = _warped(flat, source)
    return (ImageOps.flip(bent) if flip else bent).resize(size, Image.Resampling.BICUBIC)


def _bulge(sideways: bool, image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """Distort and Stretch: eight points on the upper and lower edge move by up to `frac` of their distance in a square.

    Points of the edge move inwards, those between them either way; `sideways` keeps them on their edge (Stretch).
    """
    frac, (width, height) = (0.2, 0.3, 0.4)[m], image.size
    points = np.array([(column * width / 3, row * height) for row in (0, 1) for column in range(4)], np.float64)
    low = np.array([(0 if column == 0 else -1, 0 if row == 0 else -1) for row in (0, 1) for column in range(4)])
    high = np.array([(0 if column == 3 else 1, 1 if row == 0 else 0) for row in (0, 1) for column in range(4)])
    shift = rng.uniform(low, high) * frac * [min(width, height) / 3, 0 if sideways else height / 2]
    return _warped(image, _spline(points + shift, points))


def _spline(points: np.ndarray, values: np.ndarray) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The thin-plate spline that takes each point [P,2] to its value [P,2], as a function of x and y."""

    def terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squared = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
        bends = squared * np.log(np.maximum(squared, 1e-9))
        return np.concatenate([bends, np.stack([np.ones_like(x), x, y], -1)], -1)

    count = len(points)
    system = np.zeros((count + 3, count + 3))
    system[:count] = terms(points[:, 0], points[:, 1])
    system[count:, :count] = system[:count, count:].T
    weights = np.linalg.solve(system, np.concatenate([values, np.zeros((3, 2))]))

    def source(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v = np.moveaxis(terms(x, y) @ weights, -1, 0)
        return u, v

    return source


def _warped(image: Image.Image, source: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """The image looked up at `source` of each output point: exact on a grid, bilinear between, black outside."""
    cells = min(24, *image.size)
    columns, rows = (np.linspace(0, side, cells + 1).round() for side in image.size)
    x, y = np.meshgrid(columns, rows)
    points = np.stack(source(x, y), -1)
    mesh = []
    for row in range(cells):
        for column in range(cells):
            box = tuple(int(edge) for edge in (columns[column], rows[row], columns[column + 1], rows[row + 1]))
            quad = points[row : row + 2, column : column + 2]
            mesh.append((box, [*quad[0, 0], *quad[1, 0], *quad[1, 1], *quad[0, 1]]))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


# geometry


def rotate(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """By up to 20, 20 to 40, or 40 to 60 degrees either way, a long image by less, whole, scaled back to the size."""
    most = (20, 40, 60)[m]
    degrees = eased(rng.uniform(most - 20, most) * (1 if rng.random() < 0.5 else -1), image)
    return image.rotate(degrees, Image.Resampling.BICUBIC, expand=True).resize(image.size, Image.Resampling.BICUBIC)


def perspective(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """One side, left or right, loses 0.1, 0.2 or 0.3 (+ 0.1) of its height at the top and at the bottom."""
    low, (width, height) = (0.1, 0.2, 0.3)[m], image.size
    top, bottom = rng.uniform(low, low + 0.1, 2) * height
    left = [(0.0, top), (0.0, height - bottom), (width, height), (width, 0.0)]
    right = [(0.0, 0.0), (0.0, height), (width, height - bottom), (width, top)]
    corners = np.array(left if rng.random() < 0.5 else right)
    return image.transform(image.size, Image.Transform.PERSPECTIVE, _homography(corners, width, height), Image.Resampling.BICUBIC)


def _homography(corners: np.ndarray, width: int, height: int) -> list[float]:
    """Pillow's eight numbers that take the four corners back to those of the image."""
    whole = [(0, 0), (0, height), (width, height), (width, 0)]
    system, values = [], []
    for (x, y), (u, v) in zip(corners, whole, strict=True):
        system += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(system, np.float64), np.array(values, np.float64)).tolist()


def shrink(image: Image.Image, rng: Generator, m: int) -> Image.Image:
    """By 0.2, 0.3 or 0.4 of each side, near the middle, on black."""
    frac = (0.2, 0.3, 0.4)[m]
    width, height = (max(1, round(side * (1 - frac))) for side in image.size)
    small, canvas = image.resize((width, height), Image.Resampling.BICUBIC), Image.new("RGB", image.size)
    shift = rng.uniform(0.25, 0.75, 2) * [image.width - width, image.height - height]
    canvas.paste(small, (int(shift[0]), int(shift[1])))
    return canvas


GROUPS: dict[str, dict[str, Operation]] = {
    "process": {
        "posterize": posterize,
        "solarize": solarize,
        "invert": invert,
        "equalize": nothing,
        "autocontrast": nothing,
        "sharpness": partial(_enhance, ImageEnhance.Sharpness),
        "color": partial(_enhance, ImageEnhance.Color),
    },
    "camera": {"contrast": contrast, "brightness": brightness, "jpeg": jpeg, "pixelate": pixelate},
    "noise": {"gaussian": gaussian_noise, "shot": shot_noise, "impulse": impulse_noise, "speckle": speckle_noise},
    "blur": {
        "gaussian": gaussian_blur,
        "defocus": defocus_blur,
        "motion": motion_blur,
        "glass": glass_blur,
        "zoom": zoom_blur,
    },
    "weather": {"fog": fog, "snow": snow, "frost": frost, "rain": rain, "shadow": shadow},
    "pattern": {
        "vertical grid": partial(_grid, True, False),
        "horizontal grid": partial(_grid, False, True),
        "grid": partial(_grid, True, True),
        "rectangles": partial(_rings, "rectangle"),
        "ellipses": partial(_rings, "ellipse"),
    },
    "warp": {"curve": curve, "distort": partial(_bulge, False), "stretch": partial(_bulge, True)},
    "geometry": {"rotate": rotate, "perspective": perspective, "shrink": shrink},
}
