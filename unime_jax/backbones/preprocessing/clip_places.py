"""Clips in prompts: the tokens and words that stand for them, and their places in a template."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from unime_jax.backbones.preprocessing.fit import Segments, Span

Frame = tuple[str, str]  # strings before and after a text


class ClipTokens(NamedTuple):
    """Tokens of a clip.

    `words` stand for it in a prompt, and have the clip token once for each of `counts`, which say
    how often it is repeated there.
    """

    words: str
    counts: tuple[int, ...]


MediaTokens = int | ClipTokens  # of an image, whose token is repeated so often, or of a clip


@dataclasses.dataclass(frozen=True)
class ClipPlaces:
    """Places of clips in a chat template's frames, before the text.

    Attributes:
      start: characters before the first clip of a turn without images.
      unit: what each clip adds.
      images_first: whether images stand before clips; None: there is no telling, so that a turn
        has one or the other.
    """

    start: int
    unit: str
    images_first: bool | None

    def before(self, frames: Sequence[Frame], images: int, clips: int) -> str:
        """The string before the text of a turn with so many images and clips."""
        plain, before = frames[0][0], frames[images][0]
        place = len(before) - len(plain) + self.start if self.images_first else self.start
        return before[:place] + self.unit * clips + before[place:]


def clip_places_of(
    render: Callable[[int, int], Frame], frames: Sequence[Frame], clip_token: str
) -> ClipPlaces | None:
    """Places of clips in frames; None: the template has none.

    `render` makes the frame of a number of images and one of clips, which stand before the images
    in the turn's content.
    """
    plain, after = frames[0]
    try:
        before, after_clip = render(0, 1)
        start = len(os.path.commonprefix([plain, before]))
        places = ClipPlaces(start, before[start : start + len(before) - len(plain)], None)
        is_unit = places.unit.count(clip_token) == 1 and after_clip == after
        if not is_unit or any(render(0, n)[0] != places.before(frames, 0, n) for n in (1, 2)):
            return None
        both = [(n, n) for n in (1, 2) if n < len(frames)]
        for images_first in (False, True):
            mixed = dataclasses.replace(places, images_first=images_first)
            if all(render(*numbers)[0] == mixed.before(frames, *numbers) for numbers in both):
                return mixed
    except ValueError:  # a template fails at what it does not know
        return None
    return places


def worded(
    segments: Segments, clip_token: str, place: str, words: Iterable[str]
) -> tuple[Segments, list[Span]]:
    """Segments with the words of clips in the place of their tokens, and the words' spans.

    `place` is what words take the place of where it stands, with what is around the token; the
    spans are those in the text.
    """
    pattern = re.compile(f"{re.escape(place)}|{re.escape(clip_token)}")
    remaining = iter(words)
    spans: list[Span] = []

    def replaced(text: str, spans: list[Span]) -> str:
        pieces, end, length = [], 0, 0
        for match in pattern.finditer(text):
            word = next(remaining, None)
            if word is None:
                break
            pieces += [text[end : match.start()], word]
            length += len(pieces[-2])
            spans.append((length, length + len(word)))
            length, end = length + len(word), match.end()
        return "".join(pieces) + text[end:]

    before = replaced(segments.before, [])
    return Segments(before, replaced(segments.text, spans), segments.after), spans
