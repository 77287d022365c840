"""Frames of an item's clips, decoded one by one; whatever is wrong with a clip names it."""

import contextlib
from collections.abc import Iterator, Sequence

from PIL import Image

from unime_jax.backbones.preprocessing.images import refusal
from unime_jax.batch import Item
from unime_jax.data import clips
from unime_jax.data.clips import Clip, ClipError
from unime_jax.data.quarantine import MediaError


@contextlib.contextmanager
def refusals(item: Item, number: int) -> Iterator[None]:
    """Turns errors of one of an item's media into MediaErrors that name it.

    Raises:
      MediaError: for a ClipError, which is its cause, and for other ValueErrors.
    """
    try:
        yield
    except MediaError:
        raise
    except ClipError as error:
        reason = f"the clip {item.media[number].path!r} cannot be read: {error}"
        raise refusal(item, number, reason) from error
    except ValueError as error:
        raise refusal(item, number, str(error)) from error


@contextlib.contextmanager
def opened(item: Item, number: int) -> Iterator[Clip]:
    """One of an item's media, a clip, while it is open.

    Raises:
      MediaError: it is missing, or cannot be read: then a ClipError is its cause.
    """
    media = item.media[number]
    if not media.data:
        raise refusal(item, number, f"the clip file {media.path!r} is missing")
    with contextlib.ExitStack() as stack:
        with refusals(item, number):
            clip = stack.enter_context(clips.opened(media.data))
        yield clip


def frames(item: Item, number: int, clip: Clip, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Frames of an open clip by their numbers, in RGB.

    Raises:
      MediaError: one cannot be decoded: a ClipError is its cause.
    """
    with refusals(item, number):
        yield from clip.frames(indices)
