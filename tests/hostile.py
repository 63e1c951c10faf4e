"""What a server is sent by mistake or on purpose: damaged images, bombs, and URLs that want to reach somewhere else."""

import base64
import io
import re
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")


@cache
def good(kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A small line of print."""
    image = Image.new("RGB", (150, 32), "white")
    ImageDraw.Draw(image).text((4, 8), "Total 12.50", fill="black", font=ImageFont.load_default(14))
    return saved(image.convert(mode), kind)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header may claim anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@cache
def bombs() -> list[bytes]:
    """Few bytes that claim, or become, very many pixels."""
    flat = [saved(Image.new("1", (side, side)), kind) for side in (4500, 9000) for kind in ("PNG", "GIF")]
    wide = [saved(Image.new("L", (60000, 400)), "PNG"), saved(Image.new("L", (5000, 4000)), "WEBP", quality=1)]
    tiled = saved(Image.new("RGB", (9000, 9000)), "TIFF", compression="tiff_deflate")
    photo = saved(Image.new("L", (12000, 12000)), "JPEG", quality=1)
    most = 2**31 - 1
    claims = [png(w, h) for w, h in ((most, most), (100_000, 100_000), (most, 1), (1, most), (13_000, 13_000))]
    text = png(10, 10, b"\0" * 310)[:-12] + _text_chunk(30_000_000) + b"\0\0\0\0IEND\xaeB`\x82"
    heads = [b"P5\n99999 99999\n255\n", b"BM" + bytes(12) + b"\x28\0\0\0" + b"\xff\x7f\0\0" * 6]
    return [*flat, *wide, tiled, photo, *claims, text, *heads]


def _text_chunk(size: int) -> bytes:
    data = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(size))
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@cache
def oddities() -> list[bytes]:
    """Every mode, extreme shapes, many frames, and what is no image at all."""
    modes = [good("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    modes += [good("TIFF", mode) for mode in ("CMYK", "F", "I", "LAB")] + [good("JPEG", "CMYK"), good("WEBP", "RGBA")]
    shapes = [saved(Image.new("RGB", size), "PNG") for size in ((1, 1), (1, 400), (400, 1), (3, 2), (20000, 1), (1, 20000))]
    frames = [Image.new("P", (20, 20), i % 255) for i in range(1000)]
    film = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    others = [
        b"", b"\0", b"x" * 1000, b"%PDF-1.7\n1 0 obj", b"%!PS-Adobe-3.0 EPSF-3.0\n(a) run", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04" + bytes(100), b"\x7fELF" + bytes(60), b"8BPS\0\x01" + bytes(60), b"SIMPLE  =" + bytes(2871),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), b"icns\0\0\0\x10" + bytes(8), b"\0\0\x01\0\x01\0" + bytes(40),
        b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0\x08\0\0\0" + b"\xff" * 60, b"GIF89a\xff\xff\xff\xff", b"P6\n-1 -1\n255\n",
        b"\xff\xd8\xff\xe1" + b"\xff" * 70_000, png(0, 0), png(0, 10), png(10, 10, depth=77), png(10, 10, colour=9),
        good("PNG")[:-4] + b"\0\0\0\0",
    ]  # fmt: skip
    return [*modes, *shapes, film, *others]


def images(count: int, seed: int = 0) -> Iterator[bytes]:
    """The oddities, then damaged images of every kind: bytes changed, cut off, doubled, or another kind's in the middle."""
    yield from oddities()[:count]
    rng = np.random.default_rng(seed)
    for number in range(count - len(oddities())):
        data = bytearray(good(KINDS[number % len(KINDS)]))
        match rng.integers(5):
            case 0:
                del data[rng.integers(len(data)) :]
            case 1:
                at = rng.integers(len(data))
                data[at:at] = data[at : at + rng.integers(1, 200)]
            case 2:
                at = rng.integers(len(data))
                data[at : at + 40] = good(KINDS[rng.integers(len(KINDS))])[:40]
            case _:
                for _ in range(rng.integers(1, 30)):
                    data[rng.integers(min(len(data), 200 if rng.integers(2) else len(data)))] = rng.integers(256)
        yield bytes(data)


def data_urls(count: int, seed: int = 0) -> Iterator[str]:
    """As data: URLs, with wrong media types and, here and there, wrong base64 or no data: URL at all."""
    kinds = ["image/png", "image/jpeg", "text/html", "application/pdf", "", "image/png;charset=utf-8", "../../x"]
    for number, data in enumerate(images(count, seed)):
        code = base64.b64encode(data).decode()
        match number % 12:
            case 0:
                yield f"data:{kinds[number % len(kinds)]},{code}"
            case 1:
                yield f"data:image/png;base64,{code[:-3]}"
            case 2:
                yield f"data:image/png;base64,{code[:20]} \n{code[20:]}é"
            case _:
                yield f"data:{kinds[number % len(kinds)]};base64,{code}"


_URLS = """
http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f000001/ http://0x7f.1/ http://017700000001/ http://0/
http://0.0.0.0/ http://127.0.0.1:80/ http://localhost/ http://localhost./ http://LOCALHOST/ http://localhost.localdomain/
http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[0:0:0:0:0:ffff:127.0.0.1]/
http://[64:ff9b::7f00:1]/ http://[2002:7f00:1::]/ http://[fe80::1%25eth0]/ http://[fd00::1]/
http://169.254.169.254/latest/meta-data/ http://[fd00:ec2::254]/ http://metadata.google.internal/ http://2852039166/
http://0xa9fea9fe/ http://169.254.43518/ http://100.100.100.200/ http://192.168.0.1/ http://10.0.0.1/ http://172.16.0.1/
http://allowed.example@127.0.0.1/ http://allowed.example:80@127.0.0.1/ http://allowed.example%40127.0.0.1/
http://allowed.example\\@127.0.0.1/ http://127.0.0.1\\@allowed.example/ http://127.0.0.1\\.allowed.example/
http://127.0.0.1#@allowed.example/ http://127.0.0.1?@allowed.example/ http://allowed.example#@127.0.0.1/
http://allowed.example.127.0.0.1.nip.io/ http://127.0.0.1.nip.io/ http://xallowed.example/
http://allowed.example.evil.example/ http://evil.example/allowed.example http://allowed.example:22/
http://allowed.example:8080/ https://allowed.example:80/ http://allowed.example:0/ http://allowed.example:99999/
http://allowed.example:-1/ http://allowed.example:/ http://\uff11\uff12\uff17.0.0.1/ http://\u2460\u2461\u2466.0.0.1/
http://127\u30020\u30020\u30021/ http://allowed\u3002example/ http://allowed.example\u2215@127.0.0.1/ http://%31%32%37.0.0.1/
http://allowed.example%00.evil.example/ http:127.0.0.1/ http:/127.0.0.1/ http:///127.0.0.1/ //127.0.0.1/ http://// http://
https:// ://127.0.0.1/ file:///etc/passwd file://localhost/etc/passwd FILE:///etc/passwd ftp://allowed.example/
gopher://127.0.0.1:6379/_x dict://127.0.0.1:11211/ ldap://127.0.0.1/ jar:http://127.0.0.1!/ unix:///run/x.sock /etc/passwd
../../etc/passwd C:\\x javascript:alert(1) blob:http://127.0.0.1/x http://allowed.example/a\tb http://allowed.example/\u00e9
"""
HOSTILE_URLS = [
    *re.split("[ \n]+", _URLS.strip()),
    "http://allowed.example/ HTTP/1.1\r\nHost: 127.0.0.1",
    " http://allowed.example/",
    "http://allowed.example/\0",
    "http://allowed.example /",
    "http://allowed.example/" + "a" * 3000,
    "http://127.0.0.1 @allowed.example/",
    # signs whose small or capital letter is one of ASCII's
    "http\u017f://allowed.example/a.png",
    "http\u017f://allowed.example:443/a.png",
    "http://allowed.example/\u212a.png",
    "http://allowed.example/a.png?s=\u017f",
]
