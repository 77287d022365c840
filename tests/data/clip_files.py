"""Tiny clips of moving squares in every format that is read, made by PyAV, Pillow or by hand."""

import io
import pathlib
import struct
from fractions import Fraction

import numpy as np
from PIL import Image

from unime_jax.data import clips

FRAMES, SIZE = 12, (32, 24)


def squares(count: int = FRAMES, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Frames of a bright square on its way to the right; no two are equal."""
    width, height = size
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), (40, 60, 90), np.uint8)
        left = number * (width - 8) // max(count - 1, 1)
        frame[4:14, left : left + 8] = (250, 20 * number % 256, 10)
        frame[-4:, : 1 + number * width // count] = 220
        frames.append(frame)
    return frames


def video(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    frames: list[np.ndarray] | None = None,
    rate: int | Fraction = 10,
    stamps: list[int] | None = None,
    b_frames: int | None = None,
    **options: str,
) -> bytes:
    """Frames as a video file; `stamps` are their times, in frames of that rate."""
    import av

    frames = squares() if frames is None else frames
    if codec == "libx265":
        options["x265-params"] = f"log-level=none:keyint={options.pop('g', 250)}"
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream = made.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number if stamps is None else stamps[number]
            made.mux(stream.encode(picture))
        made.mux(stream.encode())
    return file.getvalue()


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 with that display matrix (a, b, c, d), as phones write it."""
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (65536 * value for value in matrix)
    return data[:place] + struct.pack(">5l", a, b, 0, c, d) + data[place + 20 :]


def animation(
    format: str, frames: list[np.ndarray] | None = None, milliseconds: int = 100
) -> bytes:
    first, *more = [Image.fromarray(frame) for frame in frames or squares()]
    file = io.BytesIO()
    lossless = {"lossless": True} if format == "WEBP" else {}
    first.save(
        file, format, save_all=True, append_images=more, duration=milliseconds, loop=0, **lossless
    )
    return file.getvalue()


def folder(path: pathlib.Path, frames: list[np.ndarray] | None = None) -> pathlib.Path:
    """A folder of pictures 1.png, 2.png, ... 10.png, whose names do not sort as their numbers."""
    path.mkdir(parents=True)
    for number, frame in enumerate(frames or squares()):
        Image.fromarray(frame).save(path / f"{number + 1}.png")
    return path


def every_format() -> dict[str, bytes]:
    """Files of all formats and of most codecs; key frames are four frames apart."""
    return {
        "mp4": video(g="4", bf="2"),
        "mov": video("mov", g="4"),
        "hevc": video(codec="libx265", g="4"),
        "mkv": video("matroska", g="4", bf="2"),
        "webm": video("webm", "libvpx-vp9", g="4", deadline="realtime"),
        "vp8": video("webm", "libvpx", g="4", deadline="realtime"),
        "avi": video("avi", "mpeg4", g="4"),
        "avi with B-frames": video("avi", "mpeg4", g="4", b_frames=2),
        "mjpeg": video("avi", "mjpeg"),
        "gif": animation("GIF"),
        "webp": animation("WEBP"),
        "apng": animation("PNG"),
        "zip": clips.archive(squares(), 10.0),
    }
