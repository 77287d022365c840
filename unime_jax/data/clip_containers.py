"""Videos in containers (MP4, MOV, WebM, Matroska, AVI) as clips, by PyAV.

The packets of the stream are read once, which counts its frames and finds its key frames; a frame
is decoded from the key frame before it. FFmpeg gets bytes in memory and the name of the container.
"""

import bisect
import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unime_jax.data import clip_headers
from unime_jax.data.clip_facts import (
    MAX_STREAMS,
    ClipError,
    ClipFacts,
    check_frames,
    check_indices,
    check_seconds,
    refusals,
)
from unime_jax.data.images import check_size

if TYPE_CHECKING:
    import av

# FFmpeg's names of decoders; no other is ever opened.
DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "mpeg4", "msmpeg4v1", "msmpeg4v2"),
    *("msmpeg4", "mpeg1video", "mpeg2video", "h263", "mjpeg", "prores", "dvvideo", "wmv1", "wmv2"),
    *("ffv1", "huffyuv", "rawvideo", "png", "qtrle", "cinepak", "svq1", "svq3"),
)
THREADS = 2  # of a decoder; several clips are decoded at a time
MISSING_FRAMES = 3  # that are not decoded in a row and stand for the one before, as players do
_SECOND = 1_000_000  # of FFmpeg's durations of containers


@contextlib.contextmanager
def opened(data: bytes, container: str, max_pixels: int) -> Iterator["VideoClip"]:
    """The first video of a file; raises ClipError or PyAV's errors."""
    with contextlib.ExitStack() as stack:
        with refusals():
            file = stack.enter_context(_open(data, container))
            clip = VideoClip(file, _video(file, max_pixels), max_pixels, ordered=container != "avi")
        yield clip


def check(data: bytes, container: str, max_pixels: int) -> None:
    """Raises ClipError or PyAV's errors for a file that its headers refuse."""
    with _open(data, container) as file:
        _video(file, max_pixels)


class VideoClip:
    """A video stream whose packets were read; frames are decoded when they are asked for.

    Frames are told by their time stamps. AVI has none that hold with B-frames: there they are
    counted from the beginning.
    """

    _decoded: Iterator[tuple[int, "av.VideoFrame"]]
    _started: int  # the packet that decoding began at
    _at: int  # the number of the frame that is held; -1: none
    _held: "av.VideoFrame | None"
    _next: "tuple[int, av.VideoFrame] | None"  # that was decoded before it was wanted

    def __init__(
        self,
        file: "av.container.InputContainer",
        stream: "av.VideoStream",
        max_pixels: int,
        *,
        ordered: bool,
    ) -> None:
        self._stream, self._max_pixels = stream, max_pixels
        self._packets = _packets(file, stream)
        stamps = [packet.pts for packet in self._packets if not packet.is_discard]
        known = [stamp for stamp in stamps if stamp is not None]
        self._ordered = ordered and len(set(known)) == len(stamps)
        self._count = len(stamps)
        check_frames(self._count)
        self._number = {stamp: number for number, stamp in enumerate(sorted(known))}
        self._keys = [(0, 0)]  # number of a frame, of its packet; ascending
        if self._ordered:
            for place, packet in enumerate(self._packets):
                number = 0
                if packet.is_keyframe and packet.pts is not None:
                    number = self._number.get(packet.pts, 0)
                if number > self._keys[-1][0]:
                    self._keys.append((number, place))
        self._start(0)
        self._size: tuple[int, int] | None = None  # as stored, of the first frame
        first = self._image(0)
        rate = _rate(stream, sorted(known) if self._ordered else [])
        self.facts = ClipFacts(self._count, rate, *first.size)

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """As `Clip.frames`."""
        check_indices(indices, self.facts.frames)
        for index in indices:
            with refusals():
                image = self._image(int(index))
            yield image

    def _image(self, index: int) -> Image.Image:
        frame = self._frame(index)
        if frame.is_corrupt:
            raise ClipError(f"damaged: frame {index} cannot be decoded whole")
        check_size(frame.width, frame.height, self._max_pixels)
        self._size = self._size or (frame.width, frame.height)
        width, height = self._size  # of streams that change their size, too
        image: Image.Image = frame.to_image(width=width, height=height)
        return _upright(image, frame)

    def _frame(self, index: int) -> "av.VideoFrame":
        key, place = self._keys[bisect.bisect_right(self._keys, (index, len(self._packets))) - 1]
        if index < self._at or key > max(self._at, 0):
            self._start(place)
        self._advance(index)
        if self._at != index and self._started:  # what the key frame promised is not so
            self._start(0)
            self._advance(index)
        if self._at < 0 and self._next is not None:  # the first frames cannot be decoded
            self._at, self._held = self._next
            self._next = None
        if self._held is None or abs(index - self._at) > MISSING_FRAMES:
            raise ClipError(f"damaged or cut off: frame {index} of {self._count} cannot be decoded")
        return self._held

    def _start(self, place: int) -> None:
        """Decodes from that packet on, next."""
        self._stream.codec_context.flush_buffers()
        self._started = place
        self._decoded = self._decode(place)
        self._at, self._held, self._next = -1, None, None

    def _advance(self, index: int) -> None:
        """Holds that frame, or the last one before it that can be decoded."""
        while self._at < index:
            upcoming = self._next or next(self._decoded, None)
            self._next = None
            if upcoming is None:
                return
            if upcoming[0] > index:
                self._next = upcoming
                return
            self._at, self._held = upcoming

    def _decode(self, place: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Frames and their numbers, ascending."""
        context, count, last = self._stream.codec_context, 0, -1
        for packet in [*self._packets[place:], None]:
            for frame in context.decode(packet):
                number = count
                if self._ordered:
                    number = -1 if frame.pts is None else self._number.get(frame.pts, -1)
                count += 1
                if number > last:
                    last = number
                    yield number, frame


def _open(data: bytes, container: str) -> "av.container.InputContainer":
    clip_headers.check_whole(data, container)
    options = {
        "protocol_whitelist": "none",  # a name of none: nothing but these bytes is opened
        "codec_whitelist": ",".join(DECODERS),
        "max_streams": str(MAX_STREAMS),
    }
    av = _pyav()
    try:
        return av.open(io.BytesIO(data), "r", format=container, options=options)
    except av.FFmpegError as error:
        raise ClipError("damaged or cut off: its headers cannot be read") from error


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ClipError(
            "videos are decoded by PyAV, which is not installed: pip install 'unime_jax[video]'"
        ) from error
    return av


def _video(file: "av.container.InputContainer", max_pixels: int) -> "av.VideoStream":
    """The video stream that players show, ready to be decoded."""
    stream: Any = file.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise ClipError("a file without a video that can be decoded")
    context = stream.codec_context
    if context.codec.name not in DECODERS:
        raise ClipError(f"its video is {context.codec.name}, which is not decoded here")
    check_size(context.width, context.height, max_pixels)
    seconds = (file.duration or 0) / _SECOND
    if stream.duration and stream.time_base:
        seconds = max(seconds, float(stream.duration * stream.time_base))
    check_seconds(seconds)
    context.thread_count = THREADS
    context.thread_type = "AUTO"
    context.options = {"max_pixels": str(2 * max_pixels)}  # sizes are padded when stored
    video: av.VideoStream = stream
    return video


def _packets(
    file: "av.container.InputContainer", stream: "av.VideoStream"
) -> list["av.Packet[av.VideoStream]"]:
    packets = []
    try:
        for packet in file.demux(stream):
            if packet.size:  # the last has none, to flush decoders
                packets.append(packet)
                if packet.is_corrupt:
                    raise ClipError(f"cut off after {len(packets) - 1} frames")
                check_frames(len(packets))
    except _pyav().FFmpegError as error:
        raise ClipError(f"damaged or cut off after {len(packets)} frames") from error
    return packets


def _rate(stream: "av.VideoStream", stamps: list[int]) -> float | None:
    """Frames a second: the container's word, unless time stamps are more than 2 % off it."""
    said = float(stream.average_rate) if stream.average_rate else None
    span = float((stamps[-1] - stamps[0]) * (stream.time_base or 0)) if len(stamps) > 1 else 0.0
    if span <= 0:
        return said
    measured = (len(stamps) - 1) / span
    # A frame's own time may be rounded to the time base, at either end.
    slack = 0.02 + float(stream.time_base or 0) / span
    return said if said and abs(said / measured - 1) <= slack else measured


def _upright(image: Image.Image, frame: "av.VideoFrame") -> Image.Image:
    """Turned and flipped as the container's display matrix says, by right angles."""
    side: Any = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return image
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(side), np.int32))
    horizontal, vertical = a, d  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        image = image.transpose(Image.Transpose.TRANSPOSE)
        horizontal, vertical = c, b
    if horizontal < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if vertical < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image
