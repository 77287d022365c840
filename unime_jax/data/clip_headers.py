"""What the headers of a clip say that decoders do not ask, or not before all is decoded."""

import struct

from unime_jax.data.clip_facts import ClipError, check_frames

MOV = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what such a file begins with
_BOXES = (*MOV, b"moof", b"mfra", b"sidx", b"styp", b"uuid", b"meta", b"udta", b"pnot", b"emsg")
_GIF = (b"GIF87a", b"GIF89a")
_PNG = b"\x89PNG\r\n\x1a\n"


def animated(data: bytes) -> bool:
    """Whether a file is a GIF, or a WebP or PNG of several frames, by its first bytes."""
    if data.startswith(_PNG):
        return data[:4096].find(b"acTL") > 0
    webp = data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X"
    return data.startswith(_GIF) or (webp and len(data) > 20 and data[20] & 2 != 0)


def check_whole(data: bytes, container: str) -> None:
    """Raises ClipError for a video that says it is longer than it is.

    FFmpeg reads what there is, and often says nothing.
    """
    size = {"avi": _avi_size, "matroska": _matroska_size, "mov": _mov_size}[container](data)
    if size > len(data) + 1:  # AVI's last byte of padding is often left out
        raise ClipError(f"cut off: {len(data)} bytes of {size}")


def _avi_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _mov_size(data: bytes) -> int:
    """Where the last of its boxes ends; what follows them is no matter."""
    place = 0
    while data[place + 4 : place + 8] in _BOXES:
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # to the end of the file, or damaged
            break
        place += size
    return place


def _matroska_size(data: bytes) -> int:
    """Where the segment after the header ends; 0: it does not say."""
    place = 4  # after the header's own name
    for name in (b"", b"\x18\x53\x80\x67"):
        if not data.startswith(name, place):
            return 0
        place += len(name)
        first = data[place] if place < len(data) else 0
        length = 9 - first.bit_length()  # of the size: leading zeros tell
        if length > 8:
            return 0
        mask = (1 << 7 * length) - 1
        size = int.from_bytes(data[place : place + length], "big") & mask
        if size == mask:  # unknown, of live recordings
            return 0
        place += length + size
    return place


def durations(data: bytes) -> list[int]:
    """Milliseconds of each frame of an animation, found without decoding any.

    Raises:
      ClipError: it is cut off or damaged.
    """
    of = _png_durations if data.startswith(_PNG) else _webp_durations
    try:
        return (_gif_durations if data.startswith(_GIF) else of)(data)
    except (IndexError, struct.error) as error:
        raise ClipError("cut off or damaged") from error


def _gif_durations(data: bytes) -> list[int]:
    found, time, place = list[int](), 0, 13 + _table(data[10])
    whole = struct.unpack_from("<2H", data, 6)
    while place < len(data) and data[place] != 0x3B:
        if data[place] == 0x21:  # an extension; that of label 0xF9 is for the frame after it
            if data[place + 1] == 0xF9 and data[place + 2] >= 4:
                time = 10 * int.from_bytes(data[place + 4 : place + 6], "little")
            place += 2
        elif data[place] == 0x2C:
            left, top, width, height = struct.unpack_from("<4H", data, place + 1)
            if left + width > whole[0] or top + height > whole[1]:  # Pillow would make it larger
                raise ClipError(f"damaged: frame {len(found)} is larger than the animation")
            place += 11 + _table(data[place + 9])
            found.append(time)
            time = 0
        else:
            raise ClipError(f"damaged after {len(found)} frames")
        while place < len(data) and (length := data[place]):
            place += 1 + length
        place += 1
    if place > len(data):
        raise ClipError(f"cut off after {max(len(found) - 1, 0)} frames")
    check_frames(len(found))
    return found


def _table(flags: int) -> int:
    """Bytes of a GIF's table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _png_durations(data: bytes) -> list[int]:
    found, place = list[int](), len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, place)
        if kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", data, place + 28)
            found.append(round(1000 * numerator / (denominator or 100)))
        if kind == b"IEND":
            return found
        place += 12 + length
    raise ClipError(f"cut off after {max(len(found) - 1, 0)} frames")


def _webp_durations(data: bytes) -> list[int]:
    found, place = list[int](), 12
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise ClipError("cut off")
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sL", data, place)
        if kind == b"ANMF":
            found.append(int.from_bytes(data[place + 20 : place + 23], "little"))
        place += 8 + length + length % 2
    return found
