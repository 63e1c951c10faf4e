"""Images: every input to RGB, pixels bit-equal to transformers' PIL processors, hostile files, finding files."""

import io
import pickle
import random
import re
import struct
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, shared
from PIL import Image, ImageDraw, ImageFont

from trocr_jax.image_paths import EXTENSIONS, find_images
from trocr_jax.images import FIRST_OF_SEVERAL, ImageError, _count, count_pages, load, load_page
from trocr_jax.pixels.image_processor import ImageProcessor, PreprocessorError

PAPER = (255, 255, 255)
VIT = {"image_processor_type": "ViTImageProcessor", "size": 384, "resample": 2}
DEIT = {"image_processor_type": "DeiTImageProcessor", "size": 384, "resample": 3, "do_center_crop": False}


def drawn(width=300, height=48, text="Total 12.50 EUR") -> Image.Image:
    image = Image.new("RGB", (width, height), (250, 245, 235))
    ImageDraw.Draw(image).text((8, 4), text, fill=(20, 20, 60), font=ImageFont.load_default(height * 0.7))
    return image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def code(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value) and not re.search(r"0x[0-9a-f]{6}", str(caught.value))
    return caught.value.code


# --- sources and modes ------------------------------------------------------------------------------------------------


def test_path_string_bytes_pil_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    image = drawn()
    path = tmp_path / "line.data"  # the name says nothing, the first bytes do
    path.write_bytes(encoded(image, "PNG"))
    data = path.read_bytes()
    array = np.asarray(image)
    for source in (path, str(path), data, bytearray(data), memoryview(data), image, array, jnp.asarray(array)):
        np.testing.assert_array_equal(pixels(load(source)), array)


def test_the_image_given_is_left_alone() -> None:
    image = drawn()
    copy = load(image)
    copy.paste((0, 0, 0), (0, 0, 9, 9))
    assert image.getpixel((0, 0)) == (250, 245, 235)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(load(encoded(drawn(), kind, **options))), np.asarray(drawn()))


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_other_formats_decode_as_pillow_does(kind: str) -> None:
    data = encoded(drawn(), kind)
    np.testing.assert_array_equal(pixels(load(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "LAB", "CMYK", "RGBX"])
def test_opaque_modes_convert_as_pillow_does(mode: str) -> None:
    image = drawn().convert(mode) if mode != "LAB" else Image.new("LAB", (9, 7), (128, 120, 140))
    np.testing.assert_array_equal(pixels(load(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "La", "RGBa", "PA"])
def test_transparency_goes_on_white(mode: str) -> None:
    first = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)  # premultiplied modes come from their plain ones
    image = Image.new(first, (3, 1))
    if mode == "PA":
        image.putpalette([0, 0, 0])
    for x, alpha in enumerate((255, 51, 0)):  # black ink
        image.putpixel((x, 0), (0,) * (len(first) - 1) + (alpha,))
    assert pixels(load(image.convert(mode)))[0].tolist() == [[0] * 3, [204] * 3, [255] * 3]


def test_palette_with_a_transparent_entry_goes_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 90])
    image.putpixel((1, 0), 1)
    assert pixels(load(encoded(image, "PNG", transparency=0)))[0].tolist() == [[255] * 3, [0, 0, 90]]
    assert pixels(load(encoded(image, "PNG")))[0].tolist() == [[200, 0, 0], [0, 0, 90]]
    assert pixels(load(encoded(image, "PNG", transparency=b"\x00\xff")))[0].tolist() == [[255] * 3, [0, 0, 90]]
    assert pixels(load(encoded(Image.new("L", (1, 1), 7), "PNG", transparency=7)))[0].tolist() == [[255] * 3]


def test_white_on_nothing_goes_on_black() -> None:
    """As letters cut out for a dark page: on white there would be none."""
    letters = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    letters.putpixel((1, 0), (255, 255, 255, 255))
    assert pixels(load(letters))[0].tolist() == [[0] * 3, [255] * 3, [0] * 3, [0] * 3]
    pale = letters.copy()
    pale.putpixel((1, 0), (245, 245, 245, 255))
    assert pixels(load(pale))[0].tolist() == [[0] * 3, [245] * 3, [0] * 3, [0] * 3], "nobody sees them on white"
    letters.putpixel((2, 0), (90, 0, 0, 255))
    assert pixels(load(letters))[0].tolist() == [[255] * 3, [255] * 3, [90, 0, 0], [255] * 3], "on white something is seen"


def test_a_cmyk_jpeg() -> None:
    data = encoded(drawn().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(load(data)).astype(int) - np.asarray(drawn())).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    corner = Image.new("RGB", (64, 32), PAPER)
    corner.paste((0, 0, 0), (0, 0, 16, 16))  # the top left of the upright image
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # PIL's transpose that makes the stored picture from the upright one
    stored = corner.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load(encoded(stored, kind, exif=exif))
    for again in (image, load(image), load(image.crop((0, 0, 64, 32)))):
        assert again.size == (64, 32)
        assert np.asarray(again.convert("L").resize((4, 2), Image.Resampling.BOX))[0, 0] < 20, "turned once and no more"


def test_damaged_exif_does_not_hide_the_picture() -> None:
    image = load(encoded(drawn(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    np.testing.assert_array_equal(pixels(image), np.asarray(drawn()))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    image = load(data)
    assert pixels(image)[4, 4].tolist() == [255, 0, 0]
    assert FIRST_OF_SEVERAL not in load(encoded(first, kind, **options)).info
    assert (FIRST_OF_SEVERAL in image.info) == (kind == "TIFF"), "the other kinds are animations"


def with_kinds(pages: list[Image.Image], kinds: list[int]) -> bytes:
    """A TIFF whose pictures say what they are: 0 a page, 1 a smaller copy, 2 a page of several, 4 a mask."""
    for page, kind in zip(pages, kinds, strict=True):
        page.encoderinfo = {"tiffinfo": {254: kind}}
    return encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], tiffinfo={254: kinds[0]})


def test_smaller_copies_and_masks_in_a_tiff_are_no_pages() -> None:
    """As in the pyramids of archives and the thumbnails of scanners."""
    pages = [drawn().resize((width, 48)) for width in (300, 150, 75, 200, 100, 200)]
    data = with_kinds(pages, [0, 1, 1, 2, 5, 4])
    assert count_pages(data) == 2 and [load_page(data, number).width for number in (1, 2)] == [300, 200]
    with pytest.raises(ImageError):
        load_page(data, 3)
    assert FIRST_OF_SEVERAL in load(data).info and FIRST_OF_SEVERAL not in load(with_kinds(pages[:3], [0, 1, 1])).info
    assert count_pages(with_kinds(pages[:2], [1, 0])) == 2, "what comes first is read, whatever it is called"


def test_a_tiff_of_nothing_but_copies_is_not_looked_through() -> None:
    pages = [Image.new("L", (8, 8)) for _ in range(80)]
    assert FIRST_OF_SEVERAL in load(with_kinds(pages, [0] + 79 * [1])).info


def test_a_damaged_page_of_a_tiff_counts_and_cannot_be_read() -> None:
    """Whoever asks for it is told."""
    page = Image.new("RGB", (8, 8), "red")
    data = encoded(page, "TIFF", save_all=True, append_images=[page])
    assert count_pages(data) == 2
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        second = image.tag_v2._offset
    assert count_pages(data[: second + 1]) == 2 and count_pages(encoded(page, "TIFF")) == count_pages(encoded(page, "PNG")) == 1
    with pytest.raises(ImageError):
        load_page(data[: second + 1], 2)
    load_page(data[: second + 1], 1)


# --- ranges -----------------------------------------------------------------------------------------------------------

RAMP = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.uint8),
        RAMP.astype(np.int64),
        RAMP.astype(np.uint16),
        (RAMP * 257).astype(np.uint16),
        (RAMP * 257).astype(np.int32),
        (RAMP * 257).astype(">u2"),
        RAMP.astype(np.float32),
        RAMP.astype(np.float64) / 255,
        (RAMP / 255).astype(np.float32),
        RAMP.astype(np.float32) * 257,
        (RAMP / 127.5 - 1).astype(np.float32),  # normalised for a model: stretched from its own minimum and maximum
        RAMP.astype(np.float32) * 1e9,
    ],
    ids=lambda values: f"{values.dtype}-{values.max():.6g}",
)
def test_grey_arrays_of_every_range(values: np.ndarray) -> None:
    for shaped in (values, values[:, :, None], np.asfortranarray(values)):
        np.testing.assert_array_equal(pixels(load(shaped))[..., 1], RAMP)


def test_12_bit_integers_use_the_whole_range() -> None:
    image = pixels(load(np.array([[0, 2048, 4095]], np.uint16)))
    assert image[0, :, 0].tolist() == [0, 128, 255]


def test_booleans_are_black_and_white() -> None:
    assert pixels(load(np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]


def test_a_float_image_that_overshoots_its_range_a_little_is_clipped() -> None:
    assert pixels(load(np.array([[-0.04, 0.5, 1.03]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]


def test_colour_and_alpha_arrays() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for source in (colour, colour / 255, colour.astype(np.float32), colour[::-1][::-1], jnp.asarray(colour)):
        np.testing.assert_array_equal(pixels(load(source)), colour)
    alpha = np.dstack([colour, np.zeros((5, 7), np.uint8)])
    assert (pixels(load(alpha)) == 255).all()
    np.testing.assert_array_equal(pixels(load(jnp.asarray(RAMP / 255, jnp.bfloat16)))[0, :2, 0], [0, 1])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I", "F"])
def test_wide_pil_modes_are_scaled_not_clipped(mode: str) -> None:
    kind = {"I": "<i4", "F": "<f4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (16, 16), (RAMP * 257).astype(kind).tobytes())
    np.testing.assert_array_equal(pixels(load(image))[..., 0], RAMP)


def test_16_bit_files() -> None:
    wide = Image.fromarray((RAMP * 257).astype(np.uint16))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(load(encoded(wide, kind)))[..., 0], RAMP)
    np.testing.assert_array_equal(pixels(load(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF")))[..., 2], RAMP)


def test_constant_images_of_any_range_keep_their_level() -> None:
    for source in (np.full((3, 3), 255.0), np.ones((3, 3)), np.full((3, 3), 65535, np.uint16), np.full((3, 3), 255)):
        assert (pixels(load(source)) == 255).all()
    assert (pixels(load(np.zeros((3, 3)))) == 0).all()


# --- bad input --------------------------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heif", b"avif")


def test_bad_files(tmp_path: Path) -> None:
    named = tmp_path / "text.png"
    named.write_text("BMW and P5 are not pictures")
    assert code(named) == "not_an_image"
    (tmp_path / "empty.png").touch()
    assert code(tmp_path / "empty.png") == code(b"") == "empty"
    assert code(tmp_path / "nowhere.png") == code(named / "below") == code("a\0b") == "missing"
    assert code(tmp_path) == code("/dev/null") == "not_a_file"
    assert code(b"\x89PNG\r\n\x1a\n") == "truncated"
    assert code(b"BM is no bitmap, P6 no pixmap") == code(b"<svg/>") == "not_an_image"
    assert code(b"%PDF-1.7") == "pdf"
    assert all(code(b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1") == "heif" for brand in HEIF), "a phone's photographs"
    assert code(b"\0\0\0\x1cftypisom\0\0\0\0") == "not_an_image", "a film"
    assert code(None) == code(7) == code([[0, 255]]) == "bad_source"


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_):
        raise PermissionError

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", refuse)
    assert code(tmp_path / "a.png") == "unreadable"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_truncated_files(kind: str) -> None:
    options = {"quality": 95} if kind == "JPEG" else {}
    noise = np.random.default_rng(0).integers(0, 256, (64, 256, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind, **options)
    for share in (0.1, 0.5, 0.9):
        assert code(data[: int(len(data) * share)]) == "truncated"


def test_no_pixels() -> None:
    for source in (np.zeros((0, 5), np.uint8), np.zeros((4, 0, 3)), Image.new("RGB", (0, 9)), b"P5 0 9 255\n"):
        assert code(source) in ("zero_pixels", "truncated")
    assert code(np.zeros((0, 5), np.uint8)) == code(Image.new("RGB", (0, 9))) == "zero_pixels"


def test_very_small_and_very_long_images_load() -> None:
    assert load(png(1, 1, b"\0\x7f")).size == (1, 1)
    assert load(encoded(Image.new("L", (30000, 20), 255), "PNG")).size == (30000, 20)


def test_pixel_limit_is_checked_before_decoding() -> None:
    """The headers promise up to 4 gigapixels over no data: a decoder that started would report the damage instead."""
    bomb = png(30000, 30000)
    assert code(bomb) == code(png(65000, 65000)) == "too_large"
    gif = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHBB", 0, 0, 9, 9, 0, 2)
    assert code(b"GIF89a" + gif) == "too_large"
    assert code(b"P5 60000 60000 255\n") == "too_large"
    assert code(drawn(), max_pixels=100) == code(np.zeros((20, 20)), max_pixels=100) == "too_large"
    assert "30000 x 30000" in str(ImageError("too_large", "30000 x 30000"))
    assert code(png(9000, 9000), max_pixels=100_000_000) == "truncated"  # no limit of Pillow's gets in the way


def segments(jpeg: bytes) -> list[bytes]:
    """A JPEG's markers with what belongs to each, a scan's coded pixels to the scan."""
    return re.findall(rb"\xff[^\0\xd0-\xd7](?:[^\xff]|\xff[\0\xd0-\xd7])*", jpeg, re.DOTALL)


def test_a_jpeg_of_a_thousand_scans_is_refused_before_any_is_decoded() -> None:
    """2,000 scans of a picture of 4000x4000 are 125 kB and take 46 seconds."""
    *head, end = segments(encoded(Image.new("L", (64, 64), 255), "JPEG", progressive=True))
    scan = head[-1]
    assert scan.startswith(b"\xff\xda")
    assert load(b"".join([*head, *80 * [scan], end])).size == (64, 64)
    assert code(b"".join([*head, *1000 * [scan], end])) == "too_costly"


def test_a_jpeg_of_a_thousand_pieces_of_metadata_is_refused() -> None:
    start, rest = (jpeg := encoded(drawn(), "JPEG"))[:2], jpeg[2:]
    piece = b"\xff\xe1" + struct.pack(">H", 18) + b"Exif\0\0" + 10 * b"a"
    assert code(start + 1000 * piece + rest) == "too_costly"
    assert load(start + 3 * piece + rest).size == (300, 48)


@pytest.mark.parametrize("head", [b"P1\n10 10\n", b"P2\n10 10\n255\n", b"P3\n5 5\n255\n"])
def test_a_plain_ppm_of_a_hundred_thousand_remarks_is_refused(head: bytes) -> None:
    """9,000,000 of them are 18 MB and take three minutes."""
    pixels = 100 * b"1 "
    assert code(head + 100_000 * b"#\n" + pixels) == "too_costly"
    assert load(head + 500 * b"# a remark\n" + pixels).size[0] in (5, 10)
    assert load(b"P5\n100 100\n255\n" + 10_000 * b"#").size == (100, 100)  # there it is a pixel


def test_a_sign_that_lies_over_the_edge_of_two_blocks_is_counted_once() -> None:
    sign, block = b"Exif\0\0", 1 << 20
    for before in (0, block - 6, block - 3, block - 1, block, 2 * block - 1):
        assert _count(io.BytesIO(before * b"a" + sign + block * b"b" + sign), sign) == 2


@pytest.mark.parametrize("tile", [(24000, 24000), (1 << 16, 16), (16, 1 << 30)])
def test_a_tile_of_a_tiff_that_is_far_larger_than_the_picture_is_refused(tile: tuple[int, int]) -> None:
    """One of 24000x24000 around 100x32 pixels is a file of 2 MB, and fills 1.7 GB."""
    entries = [(256, 100), (257, 32), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile[0]), (323, tile[1]), (324, 8), (325, 11)]
    content = zlib.compress(b"\0\0\0")
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    offset = 8 + len(content)
    file = b"II*\0" + struct.pack("<I", offset) + content + struct.pack("<H", len(entries)) + table + bytes(4)
    assert code(file, max_pixels=1_000_000) == "too_large"


def test_tiles_of_a_tiff_may_reach_over_its_edge(tmp_path: Path) -> None:
    image = drawn(300, 48)
    image.save(tmp_path / "tiled.tif", compression="tiff_deflate", tile=(128, 64))
    np.testing.assert_array_equal(pixels(load(tmp_path / "tiled.tif")), pixels(image))


def test_a_webp_larger_than_pillow_allows() -> None:
    size = struct.pack("<I", 15999)[:3]
    assert code(b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size + size + bytes(8)) == "too_large"


@pytest.mark.parametrize("shape", [(), (5,), (2, 2, 2), (3, 8, 8), (1, 4, 4, 3)])
def test_arrays_of_other_shapes(shape: tuple[int, ...]) -> None:
    assert code(np.zeros(shape)) == "bad_array"


@pytest.mark.parametrize("value", [1j, "a", None, np.nan, np.inf, 1e300])
def test_arrays_of_other_values(value) -> None:
    assert code(np.full((2, 2), value)) == "bad_array"


def test_error_survives_pickling() -> None:
    """Decoding happens in worker processes too."""
    error = pickle.loads(pickle.dumps(ImageError("too_large", "3 x 4")))
    assert (error.code, error.detail, str(error)) == ("too_large", "3 x 4", str(ImageError("too_large", "3 x 4")))


@pytest.mark.filterwarnings("ignore")  # Pillow remarks on odd metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_mutated_files_load_or_raise_image_error(kind: str) -> None:
    rng = random.Random(kind)
    original = encoded(drawn(120, 24), kind)
    loaded = 0
    for _ in range(150):
        data = bytearray(original)
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data) if rng.random() < 0.5 else min(64, len(data)))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            loaded += load(bytes(data), max_pixels=1_000_000).mode == "RGB"
        except ImageError as error:
            assert "0x" not in str(error) and "\n" not in str(error)
    assert loaded < 150


# --- pixels of a model ------------------------------------------------------------------------------------------------


@cache
def oracle(kind: str):
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return {"vit": ViTImageProcessorPil, "deit": DeiTImageProcessorPil}[kind]


def every_mode() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (37, 211, 4)).astype(np.uint8), "RGBA")
    modes = [noise.convert(mode) for mode in ("RGB", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "RGBA", "I", "F")]
    wide = Image.fromarray(rng.integers(0, 65536, (500, 30)).astype(np.uint16))
    return [
        drawn(),
        drawn(1500, 90),
        *modes,
        wide,
        Image.new("RGB", (1, 1), "red"),
        noise.convert("RGB").resize((3, 2)),
    ]


@pytest.mark.parametrize("height, width", [(384, 384), (32, 384), (224, 96)])
@pytest.mark.parametrize("kind, resample", [("vit", 2), ("vit", 3), ("deit", 3), ("deit", 2)])
def test_pixels_are_bit_equal_to_transformers(kind: str, resample: int, height: int, width: int) -> None:
    fields = {"size": {"height": height, "width": width}, "resample": resample, "image_mean": [0.5, 0.4, 0.3]}
    fields |= {"image_std": [0.5, 0.25, 0.3]} | ({"do_center_crop": False} if kind == "deit" else {})
    theirs = oracle(kind)(**fields)
    ours = ImageProcessor.from_hf(theirs.to_dict(), (height, width))
    for image in map(load, every_mode()):
        got = ours(image)
        assert got.shape == (height, width, 3) and got.dtype == np.uint8
        want = theirs(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(ours.normalize(got).transpose(2, 0, 1), want)
        assert ours.normalize(got).dtype == np.float32


def test_the_hubs_preprocessors() -> None:
    import json

    for folder in sorted(shared("hub_configs").iterdir()):
        fields = json.loads((folder / "preprocessor_config.json").read_text())
        processor = ImageProcessor.from_hf(fields, (384, 384))
        assert processor.resample == (Image.Resampling.BICUBIC if "small" in folder.name else Image.Resampling.BILINEAR)
        assert processor == ImageProcessor.from_hf(processor.to_hf(), (384, 384))
        theirs = oracle("deit" if "small" in folder.name else "vit")(**fields)
        want = theirs(drawn(), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(processor.normalize(processor(drawn())).transpose(2, 0, 1), want)


def test_what_to_hf_writes_is_what_transformers_reads(tmp_path: Path) -> None:
    import json

    ours = ImageProcessor(height=32, width=384, resample=Image.Resampling.BICUBIC, mean=(0.1, 0.2, 0.3))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_hf()))
    theirs = oracle("vit").from_pretrained(tmp_path)
    want = theirs(drawn(), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ours.normalize(ours(drawn())).transpose(2, 0, 1), want)


@pytest.mark.parametrize(
    "fields",
    [
        VIT,
        DEIT | {"resample": 2, "crop_size": 224},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 384},
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 384, "resample": 2, "do_center_crop": False},
        {"image_processor": VIT, "processor_class": "TrOCRProcessor"},
        VIT | {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 384, "width": 384}},
        VIT | {"image_mean": 0.5, "do_convert_rgb": True, "do_pad": None, "rescale_factor": 0.00392156862745098},
        {"image_processor_type": "ViTImageProcessor"},  # no size: the model's
    ],
)
def test_every_way_to_write_the_same_preprocessor(fields: dict) -> None:
    assert ImageProcessor.from_hf(fields, (384, 384)) == ImageProcessor()


def test_without_normalisation() -> None:
    processor = ImageProcessor.from_hf(VIT | {"do_normalize": False})
    theirs = oracle("vit")(size=384, do_normalize=False)
    want = theirs(drawn(), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(processor.normalize(processor(drawn())).transpose(2, 0, 1), want)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_pad": True}, "do_pad"),
        ({"do_thumbnail": True}, "do_thumbnail"),
        ({"image_processor_type": "BeitImageProcessor"}, "BeitImageProcessor"),
        ({"image_processor_type": None}, "image_processor_type"),
        ({"size": {"shortest_edge": 384}}, "shortest_edge"),
        ({"size": [384, 384]}, "size"),
        ({"size": 224}, "image_size"),
        ({"size": 0}, "size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"fit": "crop"}, "fit"),
        ({"trimmed": "yes"}, "trimmed"),
    ],
)
def test_what_would_change_pixels_is_refused_by_name(change: dict, name: str) -> None:
    with pytest.raises(PreprocessorError, match=name):
        ImageProcessor.from_hf(VIT | change, (384, 384) if change.get("size") != 0 else (0, 0))


def test_deits_default_crop_is_refused() -> None:
    with pytest.raises(PreprocessorError, match="do_center_crop"):
        ImageProcessor.from_hf({"image_processor_type": "DeiTImageProcessor", "size": 384})


def test_other_modes_are_refused_by_the_processor() -> None:
    with pytest.raises(ValueError, match="load"):
        ImageProcessor()(Image.new("L", (9, 9)))


def test_pad_keeps_the_aspect_and_fills_with_the_paper() -> None:
    processor = ImageProcessor(height=32, width=384, fit="pad")
    for paper, ink in (((250, 245, 235), (9, 9, 9)), ((30, 40, 50), (250, 250, 250))):
        image = Image.new("RGB", (200, 64), paper)
        image.paste(ink, (20, 16, 180, 48))
        page = processor(image)
        assert page.shape == (32, 384, 3)
        np.testing.assert_array_equal(page[:, :100], np.asarray(image.resize((100, 32), Image.Resampling.BILINEAR)))
        assert (page[:, 100:] == paper).all()


def test_pad_squeezes_what_is_wider_and_survives_extremes() -> None:
    processor = ImageProcessor(height=32, width=384, fit="pad")
    long = drawn(2000, 48)
    np.testing.assert_array_equal(processor(long), np.asarray(long.resize((384, 32), Image.Resampling.BILINEAR)))
    for size in ((1, 1), (1, 5000), (30000, 20)):
        assert processor(Image.new("RGB", size, "white")).min() == 255
    assert ImageProcessor.from_hf(processor.to_hf(), (32, 384)) == processor


# --- finding files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("line10.png", "line2.png", "Line1.JPG", "notes.txt", ".hidden.png", "sub/line3.tif", "odd[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_directories_are_filtered_and_naturally_sorted(folder: Path) -> None:
    assert names(find_images([folder])) == ["Line1.JPG", "line2.png", "line10.png", "odd[1].png"]


def test_globs(folder: Path) -> None:
    assert names(find_images([f"{folder}/line*"])) == ["line2.png", "line10.png"]
    assert names(find_images([f"{folder}/*"])) == names(find_images([folder]))
    assert names(find_images([f"{folder}/**/*"])) == ["Line1.JPG", "line2.png", "line10.png", "odd[1].png", "line3.tif"]
    assert names(find_images([f"{folder}/*.txt"])) == ["notes.txt"]


def test_globs_are_not_led_round_in_circles(folder: Path) -> None:
    """With two links the paths through them are as many as 2 to the 40."""
    before = names(find_images([f"{folder}/**/*"]))
    for link in ("l1", "l2"):
        (folder / link).symlink_to(".")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").touch()
    assert names(find_images([f"{folder}/**/*"])) == names(find_images([f"{folder}/**"])) == before
    assert names(find_images([f"{folder}/**/line2.png"])) == ["line2.png"]


def test_named_files_are_kept_whatever_they_are_called(folder: Path) -> None:
    arguments = [folder / "notes.txt", folder / "line2.png", folder / "odd[1].png", folder]
    assert names(find_images(arguments)) == ["notes.txt", "line2.png", "odd[1].png", "Line1.JPG", "line10.png"]


def test_arguments_that_name_nothing(folder: Path) -> None:
    (folder / "none").mkdir()
    arguments = {f"{folder}/none": "no_match", f"{folder}/*.webp": "no_match", "gone.png": "missing"}
    for argument, expected in arguments.items():
        with pytest.raises(ImageError, match=re.escape(argument)) as caught:
            find_images([argument])
        assert caught.value.code == expected


def test_every_known_extension_is_one_of_the_formats() -> None:
    assert EXTENSIONS <= {name for name in Image.registered_extensions()}


def test_no_jax_is_imported() -> None:
    script = "import sys, trocr_jax.images, trocr_jax.pixels.ink; sys.exit(any(m in sys.modules for m in ('jax', 'torch')))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
