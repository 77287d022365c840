"""Image files of all kinds, made by Pillow or by hand, and damage to them."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

GREY16 = (np.arange(40 * 64, dtype=np.uint32).reshape(40, 64) * 25).astype(np.uint16)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    # Copies, as saving as JPEG leaves options in an image that other formats stumble over.
    more = [frame.copy() for frame in options.pop("append_images", [])]
    image.copy().save(file, format, append_images=more, **options)
    return file.getvalue()


def smooth(width: int = 21, height: int = 13) -> Image.Image:
    """Colours that differ in every corner, which lossy formats keep roughly."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def png(chunks: list[tuple[bytes, bytes]], width: int = 4, height: int = 3) -> bytes:
    """A grey PNG with more chunks before its pixels."""
    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height))
    body = [(b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
        for kind, data in body
    )


def tiff(values: np.ndarray, bits: int, *, more: tuple[tuple[int, int, int], ...] = ()) -> bytes:
    """A grey little-endian TIFF, by hand; `more`: LONGs as (tag, count, value)."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        whole = (pairs[:, 0] << 12) | pairs[:, 1]
        pixels = b"".join(int(pair).to_bytes(3, "big") for pair in whole)
    else:
        pixels = values.astype(f"<u{bits // 8}").tobytes()
    tags = {256: (1, width), 257: (1, height), 258: (1, bits), 259: (1, 1), 262: (1, 1)}
    tags |= {273: (1, None), 277: (1, 1), 278: (1, height), 279: (1, len(pixels))}
    tags |= {tag: (count, value) for tag, count, value in more}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHLL", tag, 4, count, start if value is None else value)
        for tag, (count, value) in sorted(tags.items())
    )
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + pixels


def every_format() -> list[bytes]:
    """Small files of all formats that are read, most of them in several modes."""
    rgb = smooth()
    grey, alpha, palette = rgb.convert("L"), rgb.convert("RGBA"), rgb.quantize(8)
    frames = {"save_all": True, "append_images": [rgb.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description of what is seen"
    files = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "MPO", frames),
        (rgb, "PNG", {"exif": exif}),
        (alpha, "PNG", {}),
        (palette, "PNG", {"transparency": 0}),
        (Image.fromarray(GREY16[:13, :21]), "PNG", {}),
        (rgb, "PNG", frames),
        (rgb, "WEBP", {"exif": exif}),
        (alpha, "WEBP", {"lossless": True} | frames),
        (palette, "GIF", {}),
        (rgb, "GIF", frames | {"comment": b"hello"}),
        (rgb, "BMP", {}),
        (grey.convert("1"), "BMP", {}),
        (palette, "BMP", {}),
        (rgb, "TIFF", {"exif": exif}),
        (alpha, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (Image.fromarray(GREY16[:13, :21]), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (Image.fromarray(GREY16[:13, :21].astype(np.float32)), "TIFF", {}),
        (rgb, "TIFF", frames | {"big_tiff": True}),
        (rgb, "PPM", {}),
        (grey.convert("1"), "PPM", {}),
        (rgb, "AVIF", {"exif": exif}),
        (alpha, "AVIF", {}),
        (rgb, "AVIF", frames),
        (rgb, "JPEG2000", {}),
        (alpha, "JPEG2000", {"no_jp2": True}),
    ]
    made = [saved(image, format, **options) for image, format, options in files]
    made += [b"P2 3 2 1000\n1 20 300\n1000 5 6\n", b"P3 2 1 255\n1 2 3 4 5 6\n"]
    made += [b"P5 64 40 4095\n" + (GREY16 >> 4).astype(">u2").tobytes(), tiff(GREY16 >> 4, 12)]
    return made


def damaged(data: bytes, random: random.Random) -> bytes:
    """A file after an accident: some bytes are others, gone, doubled, or it is cut off.

    Half of the changes are near the beginning, where headers are.
    """
    made = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        if not made:
            break
        place = random.randrange(min(len(made), random.choice([64, len(made)])))
        kind = random.randrange(6)
        if kind == 0:
            made[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            made[place] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            word = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1"])
            made[place : place + len(word)] = word
        elif kind == 3:
            del made[place : place + random.choice([1, 2, 7, 50])]
        elif kind == 4:
            made[place:place] = made[place : place + random.choice([1, 4, 40])]
        else:
            del made[max(place, 16) :]
    return bytes(made)
