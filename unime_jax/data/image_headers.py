"""What the headers of an image file would make a decoder do, found out before it does it.

Pillow bounds the pixels that it decodes, not what comes before: a directory of TIFF tags (EXIF is
one, too) may name the same megabytes a thousand times, and a progressive JPEG of a few kilobytes
may paint all its pixels a thousand times over.
"""

import re
import struct
from collections.abc import Iterator

MAX_TAGS = 2000  # of a directory
MAX_STRIPS = 2**20  # or tiles, of a TIFF
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_LONG_SIZES = _SIZES | {16: 8, 17: 8, 18: 8}
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324
_DIRECTORIES = (34665, 34853, 40965)  # tags that hold the place of another one: EXIF, GPS, ...
_TIFF = re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class HeaderError(ValueError):
    """A file whose headers ask for more than any honest file does."""


def check(data: bytes, max_pixels: int) -> None:
    """Raises HeaderError for a TIFF, JPEG or AVIF file that would take unbounded time or memory."""
    if _TIFF.match(data):
        check_directory(data, max_pixels)
    elif data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data[4:8] == b"ftyp":  # AVIF: Pillow reads its EXIF when it opens the file
        for header in _TIFF.finditer(data):
            check_directory(data[header.start() :])


def check_directory(data: bytes, max_pixels: int | None = None) -> None:
    """Raises HeaderError if reading a TIFF's first directory would copy far more than there is.

    Directories that it points to count, too. With `max_pixels`, tiles are bounded as well.
    """
    if not _TIFF.match(data):
        return  # not even damaged; decoders leave it alone
    copied, tiles = 0, dict[int, int]()
    places: list[int | None] = [None]
    for place in places:  # grows
        for tag, count, size, value in _entries(data, place):
            copied += size
            if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > MAX_STRIPS:
                raise HeaderError(f"a TIFF of {count} strips or tiles, the limit is {MAX_STRIPS}")
            if tag in (_TILE_WIDTH, _TILE_LENGTH):
                tiles[tag] = value
            if place is None and tag in _DIRECTORIES:
                places.append(value)
    if copied > 2 * len(data) + 2**20:
        raise HeaderError(f"TIFF or EXIF tags of {copied} bytes in {len(data)} bytes")
    width, length = (tiles.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if max_pixels and width * length > max(max_pixels, 1):
        raise HeaderError(f"tiles of {width} x {length} pixels, the limit is {max_pixels}")


def _entries(data: bytes, place: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Tag, count, bytes that would be copied and the value in place of each entry.

    `place`: where the directory is; None: where the file's header says. Nothing where it is cut
    off; what is damaged otherwise is for the decoder to find.
    """
    order = "<" if data.startswith(b"II") else ">"
    long = data[2:4] in (b"\x2b\0", b"\0\x2b")
    word, entry, sizes = ("Q", "HHQQ", _LONG_SIZES) if long else ("L", "HHLL", _SIZES)
    inline, step = struct.calcsize(f"={word}"), struct.calcsize(f"={entry}")
    counter = "Q" if long else "H"
    try:
        if place is None:
            (place,) = struct.unpack_from(f"{order}{word}", data, 8 if long else 4)
        (count,) = struct.unpack_from(f"{order}{counter}", data, place)
    except (struct.error, OverflowError):
        return
    if count > MAX_TAGS:
        raise HeaderError(f"a TIFF or EXIF directory of {count} tags, the limit is {MAX_TAGS}")
    start = place + struct.calcsize(f"={counter}")
    for number in range(count):
        try:
            tag, kind, values, value = struct.unpack_from(
                f"{order}{entry}", data, start + number * step
            )
        except struct.error:
            return
        size = values * sizes.get(kind, 0)
        copied = 0 if size <= inline else min(size, max(0, len(data) - value))
        if kind == 3 and order == ">":  # a 16-bit value is at the left end
            value >>= 8 * (inline - 2)
        yield tag, values, copied, value


def _check_jpeg(data: bytes) -> None:
    """Walks the markers of the first image; its scans are counted, its EXIF looked at."""
    place, scans, exif = 2, 0, b""
    while found := _MARKER.search(data, place):
        marker, place = data[found.start() + 1], found.end()
        if marker == 0xD9:
            break
        length = int.from_bytes(data[place : place + 2], "big")
        if marker == 0xE1 and data.startswith(b"Exif\0\0", place + 2):
            exif += data[place + 8 : place + length]
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise HeaderError(f"a JPEG of more than {MAX_SCANS} scans")
        place += length
    if exif:
        check_directory(exif)
