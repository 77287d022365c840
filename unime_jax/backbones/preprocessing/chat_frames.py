"""Chat templates as frames: the strings before and after the text of a user turn.

A chat template is a program, but for one user turn it only writes something before and something
after the text. It is therefore rendered once, checked to be such a frame, and not run again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.preprocessing.clip_places import ClipPlaces, clip_places_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MAX_IMAGES = 8  # of one item

_NOT_MULTIMODAL = (
    "the chat template does not write the text of a user turn once where the turn's content is a"
    " list of image and text parts; it is probably the language model's own"
)
_SYSTEM = "\x02system\x03"
_PROBES = ("probe", "", "two\nlines", "{{ 'x' }} <b> & \"q\" \\n", "\u00e9\u4e2d\U0001f600  x")


def frames_of(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    image_token: str,
    *,
    system: str | None = None,
) -> tuple[tuple[str, str], ...]:
    """Frames by number of images. One image must have a place; more are up to the template.

    `system` is as of `frame`.

    Raises:
      ValueError: the template is no frame, or writes another number of image tokens.
    """
    frames: list[tuple[str, str]] = []
    for images in range(MAX_IMAGES + 1):
        around = frame(tokenizer, template, images=images, system=system)
        count = "".join(around).count(image_token)
        if count != images and images > 1:
            break
        if count != images:
            raise ValueError(
                f"for {images} images the chat template writes {image_token!r} {count}"
                f" times. The rendered turn is {'...'.join(around)!r}"
            )
        frames.append(around)
    return tuple(frames)


def clips_of(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    frames: Sequence[tuple[str, str]],
    clip_token: str,
    *,
    after_system: bool = False,
) -> ClipPlaces | None:
    """Places of clips in frames; None: the template has none.

    The frames are those of `frames_of` or, `after_system`, of `system_frames_of`.
    """
    system = _SYSTEM if after_system else None

    def render(images: int, clips: int) -> tuple[str, str]:
        before, after = frame(tokenizer, template, images=images, clips=clips, system=system)
        return _split(before)[1] if after_system else before, after

    return clip_places_of(render, frames, clip_token)


def system_frames_of(
    tokenizer: "PreTrainedTokenizerBase", template: str, image_token: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What the template writes before a system turn's text, and frames that go on after that text.

    Raises:
      ValueError: as `frames_of`, or the template changes, repeats or omits the system turn.
    """
    frames = frames_of(tokenizer, template, image_token, system=_SYSTEM)
    openings, between = zip(*(_split(before) for before, _ in frames), strict=True)
    for probe in _PROBES[:1] + _PROBES[2:]:
        before, _ = frame(tokenizer, template, images=1, system=probe)
        if len(set(openings)) > 1 or before != openings[0] + probe + between[1]:
            raise ValueError(
                f"the chat template changes the system turn {probe!r}: it writes {before!r}"
            )
    afters = (after for _, after in frames)
    return openings[0], tuple(zip(between, afters, strict=True))


def _split(before: str) -> tuple[str, str]:
    pieces = before.split(_SYSTEM)
    if len(pieces) != 2:
        raise ValueError(f"the chat template does not write a system turn's text once: {before!r}")
    return pieces[0], pieces[1]


def frame(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    *,
    images: int | None,
    clips: int = 0,
    system: str | None = None,
) -> tuple[str, str]:
    """Strings before and after the text of a user turn, the second with the generation prompt.

    Args:
      tokenizer: renders the template.
      template: Jinja source.
      images: number of images in the turn, before its text; None: its content is a mere string.
      clips: number of clips before the images.
      system: text of a system turn before it; None: there is none.

    Raises:
      ValueError: the template fails on such a turn, or changes, repeats or omits the text.
    """

    def render(text: str) -> str:
        media = [{"type": "video"}] * clips + [{"type": "image"}] * (images or 0)
        parts = [*media, {"type": "text", "text": text}]
        content = text if images is None else parts
        messages: list[Any] = [{"role": "user", "content": content}]
        if system is not None:
            turn = {"role": "system", "content": [{"type": "text", "text": system}]}
            messages = [turn, *messages]
        try:
            rendered: Any = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, and fails as one
            raise ValueError(f"{_NOT_MULTIMODAL} ({error}): {template[:200]!r}") from error
        return rendered

    sentinel = "\x02text\x03"
    pieces = render(sentinel).split(sentinel)
    if len(pieces) != 2:
        raise ValueError(f"{_NOT_MULTIMODAL}: it writes {render(sentinel)!r} for {sentinel!r}")
    prefix, suffix = pieces
    for probe in _PROBES:
        if render(probe) != prefix + probe + suffix:
            raise ValueError(
                f"the chat template changes the text {probe!r}: {render(probe)!r} is not"
                f" {prefix!r} + text + {suffix!r}"
            )
    return prefix, suffix
