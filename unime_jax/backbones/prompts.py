"""From an item to token ids: the text around it, the places of its images, and its length.

A chat template is a program, but for one user turn it only writes something before and something
after the text. It is therefore rendered once, checked to be such a frame, and not run again.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from unime_jax.batch import Item

Style = Literal["chat", "raw"]

MAX_IMAGES = 8  # of one item
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

_NOT_MULTIMODAL = (
    "the chat template does not write the text of a user turn once where the turn's content is a"
    " list of image and text parts; it is probably the language model's own"
)
_PROBES = ("probe", "", "two\nlines", "{{ 'x' }} <b> & \"q\" \\n", "\u00e9\u4e2d\U0001f600  x")


class Tokenised(NamedTuple):
    """Token ids with one image token for each image, and what was left out of the text."""

    ids: list[int]
    truncated: int  # tokens cut off
    orphan_images: int  # image markers without an image


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a run words its items; picklable. Build it with `open_prompt`.

    "chat" puts the stripped text, its image markers left out, into the checkpoint's chat template.
    "raw" takes the text as it is, with image tokens where MMEB's markers `<|image_1|>` stand (in
    their order, whatever their numbers), and in front of it, each on a line, for images that have
    no marker: what VLM2Vec and UniME-V2 feed Qwen2-VL.

    In both, a marker that has no image is left out, with the newline after it. The image token
    itself counts as a marker: left in a text, it would be an image token without an image.
    """

    tokenizer: tokenizers.Tokenizer
    style: Style
    frames: tuple[tuple[str, str], ...]  # before and after the text, by number of images
    image_token: str
    image_token_id: int
    max_length: int

    def rendered(self, item: Item) -> str:
        """The prompt of an item as text, with a single image token where an image goes."""
        prefix, text, suffix, _ = self._parts(item)
        return prefix + text + suffix

    def __call__(self, item: Item, image_tokens: Sequence[int]) -> Tokenised:
        """Token ids of an item whose images will take so many tokens each.

        What is longer than `max_length` loses tokens from the end of its text; never image tokens,
        the template around the text, or the last token, which is pooled.

        Raises:
          ValueError: it cannot be made short enough, or has more images than there are places for.
        """
        prefix, text, suffix, orphans = self._parts(item)
        encoding = self.tokenizer.encode(prefix + text + suffix)
        ids = encoding.ids
        if not ids:
            raise ValueError(f"{name_of(item)}: no text and no image, so no token to pool")
        excess = max(0, len(ids) + sum(image_tokens) - len(image_tokens) - self.max_length)
        if excess:
            span = range(len(prefix), len(prefix) + len(text) + 1)
            loose = [
                i
                for i, (first, last) in enumerate(encoding.offsets[:-1])  # the last token is pooled
                if first in span and last in span and first < last and ids[i] != self.image_token_id
            ]
            if len(loose) < excess:
                fixed = self.max_length + excess - len(loose)
                what = "image tokens and " if image_tokens else ""
                raise ValueError(
                    f"{name_of(item)}: its {what}prompt alone are {fixed} tokens, and max_length is"
                    f" {self.max_length}; raise it, or process images at a lower resolution"
                )
            cut = set(loose[-excess:])
            ids = [token for i, token in enumerate(ids) if i not in cut]
        return Tokenised(ids, excess, orphans)

    def expand(
        self, ids: Sequence[int], image_tokens: Sequence[int]
    ) -> tuple[Int32[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
        """Ids with each image token as often as its image needs it, and where those are."""
        counts = np.ones(len(ids), np.int64)
        counts[np.asarray(ids) == self.image_token_id] = image_tokens
        tokens = np.repeat(np.asarray(ids, np.int32), counts)
        return tokens, tokens == self.image_token_id

    def _parts(self, item: Item) -> tuple[str, str, str, int]:
        """Prefix, text, suffix, and how many markers had no image."""
        images = len(item.pictures)
        if self.style == "raw":
            text, orphans = self._placed(item.text, images)
            return "", text, "", orphans
        if images >= len(self.frames):
            raise ValueError(
                f"{name_of(item)}: {images} images; the chat template has places for"
                f" {len(self.frames) - 1}"
            )
        text, markers = self._unmarked(item.text)
        prefix, suffix = self.frames[images]
        return prefix, text.strip(), suffix, max(0, markers - images)

    def _unmarked(self, text: str) -> tuple[str, int]:
        """A text without markers, and how many there were."""
        marker, count = self._marker(), 0
        while found := marker.findall(text):  # leaving one out may form another
            count += len(found)
            text = re.sub(f"(?:{marker.pattern})\n?", "", text)
        return text, count

    def _placed(self, text: str, images: int) -> tuple[str, int]:
        """A text with an image token for each image, and how many markers were left over."""
        marker = self._marker()
        pieces: list[str] = []
        while len(pieces) < images and (found := marker.search(text)):
            pieces.append(text[: found.start()])
            text = text[found.end() :]
        rest, orphans = self._unmarked(text)
        unplaced = f"{self.image_token}\n" * (images - len(pieces))
        return unplaced + self.image_token.join([*pieces, rest]), orphans

    def _marker(self) -> re.Pattern[str]:
        return re.compile(rf"<\|image_\d+\|>|{re.escape(self.image_token)}")


def open_prompt(
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_token_id: int,
    style: Style,
    max_length: int,
) -> Prompt:
    """Reads what a prompt needs from a checkpoint's tokenizer and chat template.

    Raises:
      ValueError: the files contradict each other, or there is no usable chat template.
    """
    image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
    if image_token not in tokenizer.get_added_vocab():
        raise ValueError(
            f"{folder}: the image token of config.json is {image_token_id}, which is"
            f" {image_token!r} in tokenizer.json and not an added (special) token"
        )
    frames: tuple[tuple[str, str], ...] = ()
    if style == "chat":
        frames = _frames(folder, tokenizer, chat_template(folder, tokenizer), image_token)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    return Prompt(backend, style, frames, image_token, image_token_id, max_length)


def _frames(
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    image_token: str,
) -> tuple[tuple[str, str], ...]:
    """The frames for 0, 1, ... images; one image must have a place, more are up to the template."""
    frames: list[tuple[str, str]] = []
    for images in range(MAX_IMAGES + 1):
        found = frame(tokenizer, template, images=images)
        count = "".join(found).count(image_token)
        if count != images and images > 1:
            break
        if count != images:
            raise ValueError(
                f"{folder}: for {images} images the chat template writes {image_token!r} {count}"
                f" times. The rendered turn is {'...'.join(found)!r}"
            )
        frames.append(found)
    return tuple(frames)


def name_of(item: Item) -> str:
    """An item in an error message."""
    text = item.text if len(item.text) <= 60 else item.text[:57] + "..."
    return f"item {text!r} with image {item.image_path!r}" if item.image_path else f"item {text!r}"


def chat_template(folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The checkpoint's multimodal chat template.

    It lies in `chat_template.jinja` or `chat_template.json`; only without them is it the one in the
    tokenizer's configuration, which in many checkpoints is still the language model's own.

    Raises:
      ValueError: the folder (or hub repository) has no chat template.
    """
    for name in TEMPLATE_FILES:
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            with open(path, encoding="utf-8") as file:
                content = file.read()
            return json.loads(content)["chat_template"] if name.endswith(".json") else content
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    raise ValueError(
        f"{folder} has no chat template: no {' or '.join(TEMPLATE_FILES)}, and no 'chat_template'"
        " in tokenizer_config.json; copy the one of the checkpoint it was made from"
    )


def frame(tokenizer: PreTrainedTokenizerBase, template: str, *, images: int) -> tuple[str, str]:
    """What the template writes before and after the text of one user turn.

    Args:
      tokenizer: renders the template.
      template: Jinja source.
      images: how many images the turn holds before its text.

    Returns:
      (prefix, suffix), the suffix with the generation prompt.

    Raises:
      ValueError: the template fails on such a turn, or changes, repeats or omits the text.
    """

    def render(text: str) -> str:
        content: list[dict[str, str]] = [{"type": "image"}] * images
        content.append({"type": "text", "text": text})
        messages: list[Any] = [{"role": "user", "content": content}]
        try:
            rendered: Any = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (TypeError, jinja2.TemplateError) as error:
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
