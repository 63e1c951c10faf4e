"""Any image to RGB. No jax here.

An image file is hostile until checked: it is recognised by its first bytes among seven formats (its name says nothing,
Pillow's other decoders are never tried), its pixels are counted from the header before any is decoded, and whatever
goes wrong is an `ImageError` with a constant message, because Pillow's own texts can carry heap addresses.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from itertools import count, islice
from typing import IO, Any, BinaryIO, Protocol

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile


class HasArray(Protocol):
    """An array of numpy, jax or another library."""

    def __array__(self) -> np.ndarray: ...


File = str | os.PathLike[str] | bytes | bytearray | memoryview
"""A path, or the bytes of a file."""
Source = File | IO[bytes] | Image.Image | HasArray
"""Where an image comes from: a path, the bytes of a file, a picture or an array; see `load`."""
MAX_PIXELS = 50_000_000  # an A4 page at 600 dpi has 35 million; a decoded pixel takes up to 8 bytes on the way to RGB

_MESSAGES = {
    "missing": "no such file",
    "not_a_file": "not a regular file",
    "unreadable": "the file cannot be opened: check its permissions",
    "empty": "the file is empty",
    "not_an_image": "not a PNG, JPEG, WEBP, TIFF, GIF, BMP or PPM image",
    "pdf": "a PDF is no picture: make one of each page first, for example with pdftoppm -r 300 -png",
    "heif": "HEIC and AVIF are not read: convert the picture to JPEG or PNG first",
    "truncated": "the image is damaged or cut off",
    "too_large": "the image has more pixels than allowed: scale it down or crop the line",
    "too_costly": "the image is made to take minutes to decode: save it anew, as PNG",
    "zero_pixels": "the image has no pixels",
    "bad_array": "an image array must be finite numbers of shape (H, W) or (H, W, 1 | 3 | 4)",
    "bad_source": "an image must be a path, bytes, a PIL image or an array",
    "no_match": "no images found",
}
_DECODERS = tuple(
    (re.compile(signature, re.DOTALL), decoder)
    for signature, decoder in (
        (rb"\x89PNG\r\n\x1a\n", PngImageFile),
        (rb"\xff\xd8\xff", JpegImageFile),
        (rb"RIFF....WEBPVP8", WebPImageFile),
        (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
        (rb"GIF8[79]a", GifImageFile),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", BmpImageFile),
        (rb"P[1-6]\s", PpmImageFile),
    )
)
_UNREAD = tuple(  # formats whose users are told what to do instead
    (re.compile(signature, re.DOTALL), code)
    for signature, code in ((rb"%PDF-", "pdf"), (rb".{4}ftyp(hei[cfmsx]|hev[cx]|mif1|msf1|avi[fs])", "heif"))
)
_UPRIGHT = {  # EXIF orientation -> the operation that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_MOST = (
    (re.compile(rb"\xff\xd8\xff"), {b"\xff\xda": 100, b"Exif\0\0": 100}),
    (re.compile(rb"P[1-3]\s"), {b"#": 1000}),
)
"""By a file's first bytes, how often it may hold what is costly. Of a JPEG scans, each of which costs a pass over the whole
picture, and pieces of metadata, each of which costs a copy of those before: real files have a dozen, and one of 100 kB could
have thousands. In coded pixels 0xff is never followed by 0xda. Of a PPM in plain text remarks, each of which costs a copy of up
to 1 MB: of 18 MB of them decoding took three minutes.
"""
_TILE_TAGS = 322, 323
_KIND_TAG, _COPY_OR_MASK = 254, 1 | 4
_MOST_COPIES = 64  # of a page; to pass over a file of nothing else would take minutes
_UNSEEN = 24  # grey levels between the darkest and the lightest pixel
FIRST_OF_SEVERAL = "first_of_several"
"""Key of a loaded image's `info`: it is the first page of a TIFF that has more."""


class ImageError(ValueError):
    """An image that cannot be read. `code` is a constant name (a key of `_MESSAGES`), the message one clear line."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{_MESSAGES[self.code]} ({self.detail})" if self.detail else _MESSAGES[self.code]


def load(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Any image as a new RGB PIL image, upright by its EXIF tag, transparency on white, the first of several frames (of the
    pages of a TIFF its `info` says so by FIRST_OF_SEVERAL).

    source: a path, the bytes of a file or one open for reading them, a PIL image in any mode, or an array (numpy, jax, anything
    with `__array__`) of shape (H, W) or (H, W, 1 | 3 | 4). Values wider than 8 bits are scaled from the smallest usual range
    that holds them all: 0..1 (floats), 0..255, 0..4095 (integers: 12-bit scanners), 0..65535, else their own minimum..maximum.
    Raises ImageError; checks `max_pixels` before decoding.
    """
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        with _open(source) as stream:
            return _read(stream, max_pixels)
    if hasattr(source, "__array__"):
        return _from_array(_as_array(source), max_pixels)
    if hasattr(source, "read"):
        return load(_content(source), max_pixels)
    raise ImageError("bad_source", f"got {type(source).__name__}")


def is_loaded(image: Image.Image) -> bool:
    """Whether `load` has nothing left to do: RGB without metadata, as it makes them."""
    return image.mode == "RGB" and not image.info.keys() - {FIRST_OF_SEVERAL}


def is_source(value: Any) -> bool:
    """Whether `load` takes this for one image, whatever it holds."""
    known = isinstance(value, Image.Image | bytes | bytearray | memoryview | str | os.PathLike)
    return known or hasattr(value, "__array__") or hasattr(value, "read")


def _content(file: Any) -> bytes:
    """What is left to read in an open file."""
    try:
        content = file.read()
    except Exception as error:  # an upload that broke off, a closed file, ...
        raise ImageError("unreadable", f"{type(error).__name__}") from None
    if not isinstance(content, bytes | bytearray):
        raise ImageError("bad_source", "got a file that is not open for reading bytes")
    return bytes(content)


def count_pages(file: File) -> int:
    """Pages of a TIFF file, a damaged one included; 1 of any other file. Raises ImageError where it is no image."""
    with _open(file) as stream:
        image = _opened(stream)
        return sum(1 for _ in _pages(image)) if isinstance(image, TiffImageFile) else 1


def load_page(file: File, number: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Page `number`, from 1, of a TIFF file, as `load` gives the first; raises ImageError."""
    with _open(file) as stream:
        image = _opened(stream)
        try:
            places = _pages(image) if isinstance(image, TiffImageFile) else iter((0,))
            image.seek(next(islice(places, number - 1, None)))
        except Exception as error:
            raise _failure(error) from None
        return _decode(image, max_pixels)


def _pages(image: TiffImageFile) -> Iterator[int]:
    """Where a TIFF's pages are among its pictures: smaller copies, as of a pyramid, and masks are none."""
    copies = 0
    for place in count():
        try:
            image.seek(place)
        except EOFError:
            return
        except Exception:  # whoever asks for this page is told that it is damaged; where the next one lies, nobody knows
            yield place
            return
        copies = copies + 1 if place and _is_copy(image) else 0
        if not 0 < copies <= _MOST_COPIES:
            yield place


def _is_copy(image: TiffImageFile) -> bool:
    kind = image.tag_v2.get(_KIND_TAG)
    return isinstance(kind, int) and bool(kind & _COPY_OR_MASK)


def _open(file: File) -> BinaryIO:
    if isinstance(file, bytes | bytearray | memoryview):
        return io.BytesIO(file)
    try:
        regular = stat.S_ISREG(os.stat(file).st_mode)  # opening a pipe would wait for its writer
        stream = open(file, "rb") if regular else None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise ImageError("missing") from None
    except OSError:
        raise ImageError("unreadable") from None
    if stream is None:
        raise ImageError("not_a_file")
    return stream


def _opened(stream: BinaryIO) -> ImageFile:
    """Its header read, its pixels not yet."""
    try:
        head = stream.read(32)
        decoder = _decoder(head)
        signs = next((signs for signature, signs in _MOST if signature.match(head)), {})
        if any(_count(stream, sign) > most for sign, most in signs.items()):
            raise ImageError("too_costly")
        stream.seek(0)
        return decoder(stream)
    except Exception as error:
        raise _failure(error) from None


def _count(stream: BinaryIO, sign: bytes) -> int:
    """How often a file holds these bytes."""
    stream.seek(0)
    count, tail = 0, b""
    while block := stream.read(1 << 20):
        block = tail + block
        count, tail = count + block.count(sign), block[1 - len(sign) :]
    return count


def _read(stream: BinaryIO, max_pixels: int) -> Image.Image:
    image = _opened(stream)
    picture = _decode(image, max_pixels)
    if isinstance(image, TiffImageFile) and len(list(islice(_pages(image), 2))) > 1:
        picture.info[FIRST_OF_SEVERAL] = True
    return picture


def _decoder(head: bytes) -> type[ImageFile]:
    if not head:
        raise ImageError("empty")
    for signature, decoder in _DECODERS:
        if signature.match(head):
            return decoder
    raise ImageError(next((code for signature, code in _UNREAD if signature.match(head)), "not_an_image"))


def _decode(image: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(image.width, image.height, max_pixels)
    try:
        if isinstance(image, TiffImageFile):  # libtiff fills a whole tile, whatever part of it is picture
            width, height = (int(image.tag_v2.get(tag, 1)) for tag in _TILE_TAGS)
            _check_size(width, height, max_pixels)
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        return _plain(_to_rgb(image.transpose(upright) if upright is not None else image))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on damaged files
        raise _failure(error) from None


def _plain(image: Image.Image) -> Image.Image:
    """Without metadata: lines that are cut out of a photograph, and the photograph loaded again, would be turned once more."""
    image.info = {key: value for key, value in image.info.items() if key == FIRST_OF_SEVERAL}
    return image


def _failure(error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError)
    return ImageError("too_large" if bomb else "truncated")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("zero_pixels")
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height}, limit {max_pixels}")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata does not make the picture unreadable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel, which convert() would clip
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        return _on_paper(image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA"))
    return image.convert("RGB")


def _on_paper(image: Image.Image) -> Image.Image:
    """An RGBA image on white; on black where that alone shows something, as of white letters cut out for a dark page."""
    on_white = _composite(image, "white")
    if _contrast(on_white) >= _UNSEEN:
        return on_white
    on_black = _composite(image, "black")
    return on_black if _contrast(on_black) >= _UNSEEN else on_white


def _composite(image: Image.Image, paper: str) -> Image.Image:
    under = Image.new("RGB", image.size, paper)
    under.paste(image, mask=image.getchannel("A"))
    return under


def _contrast(image: Image.Image) -> int:
    darkest, lightest = image.convert("L").getextrema()
    return int(lightest) - int(darkest)  # pyright: ignore[reportArgumentType]


def _as_array(source: Any) -> np.ndarray:
    try:
        return np.asarray(source)
    except Exception as error:  # whatever another library's __array__ raises, such as torch for a tensor with gradients
        raise ImageError("bad_source", f"{type(source).__name__} gives no array: {error}") from None


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError("bad_array", f"got shape {array.shape}")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    if array.dtype.name == "bfloat16":  # jax's, which numpy does not count among the floats
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise ImageError("bad_array", f"got {array.dtype}")
    return _to_rgb(Image.fromarray(_to_uint8(array[..., 0] if array.shape[2:] == (1,) else array)))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers of any type and range as uint8 of the same shape, by the rule of `load`."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    integral = values.dtype.kind in "iu"
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise ImageError("bad_array")
    slack = 0.0 if integral else 0.1  # a resized float image overshoots its range; one normalised for a model, far more
    for top in (255.0, 4095.0, 65535.0) if integral else (1.0, 255.0, 65535.0):
        if low >= -slack * high and high <= top + slack * top:
            low, high = 0.0, top
            break
    values -= low
    values *= 255.0 / ((high - low) or 1.0)
    return np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)
