"""The augmentations draw what the recipes say: operations as often, parameters as large, images as they should come out."""

import collections

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter1d

from trocr_jax.train.augmentation import da2 as augment
from trocr_jax.train.augmentation import rand_augment

OPERATIONS = {(group, name): operation for group, members in rand_augment.GROUPS.items() for name, operation in members.items()}


@pytest.fixture
def line() -> Image.Image:
    """A gray line of blocks on paper, coloured a little: 90 x 40."""
    pixels = np.full((40, 90, 3), (230, 225, 215), np.uint8)
    pixels[10:30, 12:80:9] = (20, 25, 40)
    pixels[18:22, 12:80] = (20, 25, 40)
    return Image.fromarray(pixels)


def flat(level: int = 128, size: tuple[int, int] = (200, 200)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64) / 255


class Fixed:
    """A Generator whose uniform numbers are all the lowest or all the highest they can be."""

    def __init__(self, highest: bool, seed: int = 0):
        self._highest, self._rng = highest, np.random.default_rng(seed)

    def uniform(self, low, high, size=None):
        value = np.asarray(high if self._highest else low, float)
        return float(value) if size is None and not value.shape else np.broadcast_to(value, value.shape if size is None else size)

    def integers(self, low, high=None, *size):
        low, high = (0, low) if high is None else (low, high)
        return self._rng.integers(low, high, *size) if size else (high - 1 if self._highest else low)

    def __getattr__(self, name):
        return getattr(self._rng, name)


# DA2


def test_da2_draws_one_of_seven_equally_often(line, monkeypatch):
    seen = collections.Counter()

    def counting(name):
        return lambda image, rng: (seen.update([name]), image)[1]

    assert len(augment.DA2) == 7
    monkeypatch.setattr(augment, "DA2", {name: counting(name) for name in augment.DA2})
    rng = np.random.default_rng(0)
    for _ in range(7000):
        augment.da2(line, rng)
    assert set(seen) == set(augment.DA2) and all(880 < count < 1120 for count in seen.values())


def test_da2_is_a_function_of_the_generator(line):
    def run(seed: int) -> list[bytes]:
        rng = np.random.default_rng(seed)
        return [augment.da2(line, rng).tobytes() for _ in range(20)]

    assert run(1) == run(1) != run(2)
    assert augment.da2(line.convert("L"), np.random.default_rng(0)).mode == "RGB"


def test_rotate_keeps_all_and_fills_white(line):
    for highest in (False, True):
        rotated = augment.rotate(line, Fixed(highest))
        angle = np.deg2rad(10)
        assert abs(rotated.width - (90 * np.cos(angle) + 40 * np.sin(angle))) <= 2
        assert rotated.getpixel((0, 0) if highest else (rotated.width - 1, 0)) == (255, 255, 255)
        assert colours(rotated) == colours(line) | {(255, 255, 255)}, "nearest pixel makes no new colours"


@pytest.mark.parametrize("highest, sigma", [(False, 0.1), (True, 2.0)])
def test_blur_is_a_gaussian_of_three_taps(highest, sigma):
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 255
    side = np.exp(-0.5 / sigma**2)
    taps = np.array([side, 1, side]) / (1 + 2 * side)
    expected = np.zeros((9, 9))
    expected[3:6, 3:6] = 255 * np.outer(taps, taps)
    blurred = np.asarray(augment.blur(Image.fromarray(dot), Fixed(highest)))
    np.testing.assert_allclose(blurred[..., 1], expected, atol=0.51)


def test_blur_mirrors_the_edge():
    edge = np.zeros((3, 5, 3), np.uint8)
    edge[:, 1] = 255
    row = np.asarray(augment.gaussian(Image.fromarray(edge), 1.0, 3))[1, :, 0]
    side = np.exp(-0.5) / (1 + 2 * np.exp(-0.5))
    assert row[0] == round(255 * 2 * side), "the neighbour outside is the neighbour inside"


def test_dilation_thins_and_erosion_thickens_dark_ink(line):
    rng = np.random.default_rng(0)
    dark = {name: (np.asarray(augment.DA2[name](line, rng))[..., 0] < 50).sum() for name in ("dilation", "keep", "erosion")}
    assert dark["dilation"] < dark["keep"] < dark["erosion"]
    x = np.asarray(line)[..., 0]
    assert np.asarray(augment.lighten(line, rng))[20, 30, 0] == x[19:22, 29:32].max()
    assert np.asarray(augment.darken(line, rng))[9, 12, 0] == x[8:11, 11:14].min()


def test_downscale_is_a_third_of_the_input_and_nearest(line):
    small = augment.downscale(line, np.random.default_rng(0))
    assert small.size == (128, 128) and colours(small) == colours(line)


def test_a_line_that_is_not_stretched_stays_legible():
    """30 bars of 15 pixels: of 128 x 128 pixels, or turned by 10 degrees and fitted to a height of 50, they are not 2 wide."""
    bars = Image.fromarray(np.repeat(np.where(np.arange(900) % 30 < 15, 0, 255).astype(np.uint8)[None], 50, 0)).convert("RGB")
    assert augment.reduce(bars, np.random.default_rng(0)).size == (300, 17)
    assert augment.tilt(bars, Fixed(True)).height < 50 * 1.3 < augment.rotate(bars, Fixed(True)).height
    for seed in range(30):
        damaged = augment.da2(bars, np.random.default_rng(seed), stretched=False)
        assert count_of_bars(damaged) == 30


def count_of_bars(image: Image.Image) -> int:
    """How often the columns of an image turn darker than those around them."""
    columns = np.asarray(image.convert("L").resize((900, 50)), float).mean(0)
    dark = columns < uniform_filter1d(columns, 61, mode="reflect") - 1
    return int((np.diff(dark.astype(int), prepend=0) == 1).sum())


def test_underline_is_as_long_as_the_ink(line):
    drawn = np.asarray(augment.underline(line, np.random.default_rng(0)))
    expected = np.array(line)
    expected[27:30, 12:80] = 0
    np.testing.assert_array_equal(drawn, expected)


def test_underline_at_the_top_and_without_ink():
    top = flat(255, (6, 5))
    top.putpixel((2, 0), (0, 0, 0))
    np.testing.assert_array_equal(np.asarray(augment.underline(top, np.random.default_rng(0))), np.asarray(top))
    assert augment.underline(flat(50), np.random.default_rng(0)).getcolors() == flat(50).getcolors(), "50 is no ink"
    assert augment.underline(flat(49), np.random.default_rng(0)).getpixel((100, 199)) == (0, 0, 0)


# RandAugment


def test_rand_augment_damages_half_with_three_groups(line, monkeypatch):
    applied: list[tuple[str, str, int]] = []

    def counting(group, name):
        return lambda image, rng, m: (applied.append((group, name, m)), image)[1]

    groups = {group: {name: counting(group, name) for name in members} for group, members in rand_augment.GROUPS.items()}
    monkeypatch.setattr(rand_augment, "GROUPS", groups)
    rng, damaged = np.random.default_rng(0), 0
    for _ in range(2000):
        before = len(applied)
        rand_augment.rand_augment(line, rng, stretched=False)
        of_this = [group for group, _, _ in applied[before:]]
        assert len(of_this) in (0, 3) and len(set(of_this)) == len(of_this)
        damaged += bool(of_this)
    assert 910 < damaged < 1090
    by_group = collections.Counter(group for group, _, _ in applied)
    assert len(by_group) == 8 and all(abs(count / damaged - 3 / 8) < 0.06 for count in by_group.values())
    by_magnitude = collections.Counter(m for _, _, m in applied)
    assert set(by_magnitude) == {0, 1, 2} and all(abs(n / len(applied) - 1 / 3) < 0.04 for n in by_magnitude.values())
    in_blur = collections.Counter(name for group, name, _ in applied if group == "blur")
    assert len(in_blur) == 5 and all(abs(n / by_group["blur"] - 1 / 5) < 0.07 for n in in_blur.values())


def test_groups_are_those_of_the_recipe():
    sizes = {group: len(members) for group, members in rand_augment.GROUPS.items()}
    assert sizes == dict(process=7, camera=4, noise=4, blur=5, weather=5, pattern=5, warp=3, geometry=3)


def test_rand_augment_scales_first_and_repeats(line):
    outputs = [rand_augment.rand_augment(line, np.random.default_rng(seed)) for seed in range(6)]
    again = [rand_augment.rand_augment(line, np.random.default_rng(seed)) for seed in range(6)]
    assert all(image.size == (384, 384) and image.mode == "RGB" for image in outputs)
    assert [image.tobytes() for image in outputs] == [image.tobytes() for image in again]
    plain = line.resize((384, 384), Image.Resampling.BICUBIC).tobytes()
    assert 0 < sum(image.tobytes() == plain for image in outputs) < 6


def test_rand_augment_keeps_the_size_of_a_line_that_is_not_stretched(line):
    for seed in range(6):
        assert rand_augment.rand_augment(line, np.random.default_rng(seed), stretched=False).size == line.size


@pytest.mark.parametrize("group, name", [key for key in OPERATIONS if key[0] in ("warp", "geometry") or key[1] == "zoom"])
def test_what_moves_parts_of_a_long_line_leaves_its_letters_apart(group, name):
    bars = Image.fromarray(np.repeat(np.where(np.arange(900) % 30 < 15, 0, 255).astype(np.uint8)[None], 50, 0)).convert("RGB")
    for seed in range(4):
        moved = OPERATIONS[group, name](bars, np.random.default_rng(seed), 2)
        assert moved.size == (900, 50) and count_of_bars(moved) in (30, 31)


@pytest.mark.parametrize("group, name", OPERATIONS)
@pytest.mark.parametrize("size", [(96, 96), (61, 33), (7, 5)])
def test_every_operation_keeps_size_and_mode_and_repeats(group, name, size, line):
    image = line.resize(size)
    before = image.tobytes()
    for m in range(3):
        out = OPERATIONS[group, name](image, np.random.default_rng(m), m)
        assert out.size == size and out.mode == "RGB"
        assert out.tobytes() == OPERATIONS[group, name](image, np.random.default_rng(m), m).tobytes()
    assert image.tobytes() == before, "the operation changed its input"


def test_process(line):
    rng = np.random.default_rng(0)
    for m, bits in enumerate((1, 3, 6)):
        ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, -1))
        counts = {len(colours(rand_augment.posterize(ramp, rng, m))) for _ in range(30)}
        assert counts == {2**bits, 2 ** (bits + 1)}
        threshold = (64, 128, 192)[m]
        for highest, first in ((False, threshold), (True, threshold + 63)):
            solarized = np.asarray(rand_augment.solarize(ramp, Fixed(highest), m))[0, :, 0]
            np.testing.assert_array_equal(solarized[:first], np.arange(first))
            assert solarized[first] == 255 - first
    np.testing.assert_array_equal(np.asarray(rand_augment.invert(line, rng, 1)), 255 - np.asarray(line))
    for name in ("equalize", "autocontrast"):
        assert OPERATIONS["process", name](line, rng, 2).tobytes() == line.tobytes()


@pytest.mark.parametrize("name", ["sharpness", "color"])
@pytest.mark.parametrize("m, low", [(0, 0.1), (1, 0.7), (2, 1.3)])
def test_enhancements_draw_their_factor(name, m, low, line):
    from PIL import ImageEnhance

    kind = {"sharpness": ImageEnhance.Sharpness, "color": ImageEnhance.Color}[name]
    for highest in (False, True):
        expected = kind(line).enhance(low + 0.6 * highest)
        difference = np.asarray(OPERATIONS["process", name](line, Fixed(highest), m), int) - np.asarray(expected, int)
        assert np.abs(difference).max() <= 1


def test_camera(line):
    rng, x = np.random.default_rng(0), values(line)
    for m in range(3):
        mean = x.mean((0, 1))
        np.testing.assert_allclose(
            values(rand_augment.contrast(line, rng, m)), mean + (0.4, 0.3, 0.2)[m] * (x - mean), atol=0.005
        )
        brighter = values(rand_augment.brightness(line, rng, m)).max(-1)
        np.testing.assert_allclose(brighter, np.minimum(x.max(-1) + (0.1, 0.2, 0.3)[m], 1), atol=0.005)
        black = values(rand_augment.brightness(flat(0), rng, m))
        np.testing.assert_allclose(black, (0.1, 0.2, 0.3)[m], atol=0.005)
    errors = [np.abs(values(rand_augment.jpeg(line, rng, m)) - x).mean() for m in range(3)]
    assert 0 < errors[0] < errors[2]
    blocks = np.asarray(rand_augment.pixelate(line, rng, 2))
    assert len(np.unique(blocks.reshape(40, -1), axis=0)) <= 16, "40 rows become 0.4 of them"


@pytest.mark.parametrize("m", range(3))
def test_noise(m):
    low, high = (0.08, 0.1, 0.12)[m], (0.11, 0.13, 0.15)[m]
    for highest in (False, True):
        fixed, expected = Fixed(highest), high if highest else low
        assert abs(values(rand_augment.gaussian_noise(flat(), fixed, m)).std() - expected) < 0.004
        speckles = (0.15, 0.2, 0.25)[m] + 0.05 * highest
        assert abs(values(rand_augment.speckle_noise(flat(), fixed, m)).std() - speckles * 128 / 255) < 0.004
        photons = (13, 8, 3)[m] + 7 * highest
        shot = values(rand_augment.shot_noise(flat(64), fixed, m))
        assert abs(shot.mean() - 64 / 255) < 0.01 and abs(shot.std() - np.sqrt(64 / 255 / photons)) < 0.02
        impulses = values(rand_augment.impulse_noise(flat(), fixed, m))
        share = (0.03, 0.07, 0.11)[m] + 0.04 * highest
        assert abs((impulses == 1).mean() - share / 2) < 0.003 and abs((impulses == 0).mean() - share / 2) < 0.003


def dot(size: int = 61) -> Image.Image:
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[size // 2, size // 2] = 255
    return Image.fromarray(pixels)


def test_gaussian_blur_draws_a_sigma_at_the_largest_magnitude_only():
    for m, peaks in enumerate(((0.5,), (1.0,), (0.5, 1.0, 2.0))):
        expected = {round(255 * (np.exp(-0.5 * (np.arange(31) - 15) ** 2 / s**2).sum() ** -2)) for s in peaks}
        rng = np.random.default_rng(m)
        assert {rand_augment.gaussian_blur(dot(), rng, m).getpixel((30, 30))[0] for _ in range(40)} == expected


def test_defocus_is_a_disk():
    for m, radius in enumerate((2, 3, 4)):
        lit = np.asarray(rand_augment.defocus_blur(dot(), np.random.default_rng(0), m))[..., 0] > 0
        rows, columns = np.indices(lit.shape) - 30
        np.testing.assert_array_equal(lit, rows**2 + columns**2 <= radius**2)


def test_motion_goes_one_way():
    for m, radius in enumerate((10, 12, 14)):
        for highest, sign in ((False, 1), (True, -1)):
            lit = np.argwhere(np.asarray(rand_augment.motion_blur(dot(), Fixed(highest), m))[..., 0] > 0) - 30
            assert (lit[:, 0] == sign * -lit[:, 1]).mean() > 0.8 or (lit[:, 0] == sign * lit[:, 1]).mean() > 0.8
            assert lit[:, 1].max() <= 0 and -2 * radius - 1 <= lit[:, 1].min() < -4


def test_glass_and_zoom_stay_near(line):
    glass = np.asarray(rand_augment.glass_blur(dot(), np.random.default_rng(3), 2))[..., 0] > 0
    assert np.abs(np.argwhere(glass) - 30).max() <= 2 + 4 * 2 and glass.sum() > 1
    zoomed = values(rand_augment.zoom_blur(line.resize((96, 96)), np.random.default_rng(0), 2))
    centre, edge = (
        np.abs(zoomed[48 - r : 48 + r, 48 - r : 48 + r] - values(line.resize((96, 96)))[48 - r : 48 + r, 48 - r : 48 + r]).mean()
        for r in (6, 48)
    )
    assert centre < edge


def test_a_cloud_over_a_long_line_is_no_larger_than_it_must_be():
    """It grew with the square of the length, 17 GB here, and was flat across the line."""
    cloud = rand_augment._plasma(np.random.default_rng(0), (32, 40_000), 2.0)
    assert cloud.shape == (32, 40_000) and cloud.std(axis=0).mean() > 0.1


def test_weather(line):
    rng = np.random.default_rng(0)
    for m in range(3):
        cloud = rand_augment._plasma(rng, (50, 90), 2.0)
        assert cloud.shape == (50, 90) and cloud.min() == 0 and cloud.max() == pytest.approx(1)
        assert np.abs(np.diff(cloud, axis=0)).mean() < 0.3 * cloud.std(), "a cloud is smooth"
        foggy = values(rand_augment.fog(line, rng, m))
        assert foggy.max() <= values(line).max() + 0.01 and foggy.std() < 1.3 * values(line).std()
        snowy = values(rand_augment.snow(flat(40), rng, m))
        assert snowy.mean() > 40 / 255
        streaks = np.asarray(rand_augment.rain(flat(0), rng, m))
        assert set(np.unique(streaks)) == {0, 200} and 0.5 * 50 * 5 < (streaks[..., 0] > 0).sum() < 110 * 10
        shaded = np.asarray(rand_augment.shadow(flat(255), np.random.default_rng(m), m))
        low = (64, 96, 128)[m]
        assert shaded.max() == 255 and 255 - low - 33 <= shaded.min() <= 255 - low
    icy = values(rand_augment.frost(flat(0), rng, 2))
    assert icy.max() <= 0.7**2 + 0.01 and values(rand_augment.frost(flat(200), rng, 2)).min() <= 0.7**2 * 200 / 255 + 0.01


def test_patterns_are_black_lines_three_minus_m_apart():
    for m in range(3):
        black = lambda name: np.asarray(OPERATIONS["pattern", name](flat(255, (40, 40)), None, m))[..., 0] == 0  # noqa: B023, E731
        np.testing.assert_array_equal(black("vertical grid").all(0), np.arange(40) % (4 - m) == 1)
        np.testing.assert_array_equal(black("horizontal grid").all(1), np.arange(40) % (4 - m) == 1)
        np.testing.assert_array_equal(black("grid"), black("vertical grid") | black("horizontal grid"))
        np.testing.assert_array_equal(black("rectangles")[20, :20], np.arange(20) % (4 - m) == 0)
        assert black("ellipses")[20, 0] and not black("ellipses")[0, 0]


def test_a_spline_goes_through_its_points():
    points = np.random.default_rng(0).uniform(0, 100, (8, 2))
    wanted = points + np.random.default_rng(1).uniform(-9, 9, (8, 2))
    u, v = rand_augment._spline(points, wanted)(points[:, 0], points[:, 1])
    np.testing.assert_allclose(np.stack([u, v], -1), wanted, atol=1e-6)


def test_warp():
    white = flat(255, (96, 96))
    arcs = [np.asarray(rand_augment.curve(white, np.random.default_rng(seed), 1))[..., 0] > 128 for seed in range(20)]
    assert all(0.2 < arc.mean() < 0.55 for arc in arcs), "a band 0.4 to 0.5 of the height"
    assert {bool(arc[5].any()) for arc in arcs} == {True, False}, "upwards and downwards"
    for m, frac in enumerate((0.2, 0.3, 0.4)):
        for seed in range(10):
            stretched = np.asarray(OPERATIONS["warp", "stretch"](white, np.random.default_rng(seed), m))[..., 0] > 128
            assert stretched[:, 40:56].all() and stretched[48].sum() >= 96 * (1 - 2 * frac / 3) - 3
            distorted = np.asarray(OPERATIONS["warp", "distort"](white, np.random.default_rng(seed), m))[..., 0] > 128
            assert distorted[48, 40:56].all() and 0.3 < distorted.mean() <= 1


def test_geometry(line):
    for m, frac in enumerate((0.2, 0.3, 0.4)):
        small = np.asarray(rand_augment.shrink(flat(255, (100, 80)), np.random.default_rng(m), m))[..., 0] > 128
        assert abs(small.any(0).sum() - 100 * (1 - frac)) <= 1 and abs(small.any(1).sum() - 80 * (1 - frac)) <= 1
        for seed in range(6):
            shape = np.asarray(rand_augment.perspective(flat(255, (100, 100)), np.random.default_rng(seed), m))[..., 0] > 128
            sides = sorted((shape[:, 2].sum(), shape[:, 97].sum()))
            assert sides[1] > 95 and 100 * (1 - 2 * (0.1 * m + 0.2)) - 3 <= sides[0] <= 100 * (1 - 0.2 * (m + 1)) + 4
    turned = [np.asarray(rand_augment.rotate(flat(255), np.random.default_rng(s), 0))[0, 0, 0] for s in range(5)]
    assert max(turned) <= 255 and min(turned) == 0
