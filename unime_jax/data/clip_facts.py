"""What is known of a clip before its frames are decoded, its limits, and its error."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from PIL import Image

from unime_jax.data.images import ImageError
from unime_jax.data.strange_texts import shown

MAX_BYTES = 2**30  # of a file
MAX_PIXELS = 2**25  # of a frame; 8K has 33 million
MAX_FRAMES = 2**18  # 2.4 hours of 30 frames a second
MAX_SECONDS = 4 * 3600
MAX_STREAMS = 64  # sound, subtitles and so on, none of which is decoded


class ClipError(ImageError):
    """A clip that cannot be used, or may not be read; the message says why, not which."""


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """Frames of a clip, frames a second (None: unknown) and their size, upright."""

    frames: int
    fps: float | None
    width: int
    height: int


class Clip(Protocol):
    """A clip that is open; frames are decoded one by one, when they are asked for."""

    @property
    def facts(self) -> ClipFacts: ...

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Frames in RGB by their numbers in the order of showing, ascending, repeats allowed.

        Raises:
          IndexError: there is no such frame, or numbers descend.
          ClipError: a frame cannot be decoded.
        """
        ...


def check_indices(indices: Sequence[int], frames: int) -> None:
    """Raises IndexError for numbers of frames that are not there, or that descend."""
    if any(later < earlier for earlier, later in zip(indices, indices[1:], strict=False)):
        raise IndexError("numbers of frames must ascend")
    if len(indices) and not 0 <= indices[0] <= indices[-1] < frames:
        raise IndexError(f"frames {indices[0]} to {indices[-1]} of a clip of {frames}")


def check_frames(frames: int) -> None:
    """Raises ClipError for no frames, or too many."""
    if frames < 1:
        raise ClipError("a clip without frames")
    if frames > MAX_FRAMES:
        raise ClipError(f"a clip of {frames} frames, the limit is {MAX_FRAMES}")


def check_seconds(seconds: float) -> None:
    """Raises ClipError for a clip that is too long."""
    if seconds > MAX_SECONDS:
        raise ClipError(f"a clip of {seconds:.0f} seconds, the limit is {MAX_SECONDS}")


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Makes a ClipError of whatever a decoder raises at hostile bytes."""
    try:
        yield
    except ClipError:
        raise
    except ImageError as error:
        raise ClipError(str(error)) from error
    except Exception as error:
        raise ClipError(f"{type(error).__name__}: {shown(str(error))[:200]}") from error
