"""From an item to token ids: the text around it, the places of its images, and its length.

A chat template is a program, but for one user turn it only writes something before and something
after the text. It is therefore rendered once, checked to be such a frame, and not run again.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from transformers import AutoTokenizer, PreTrainedTokenizerBase

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
    special_tokens: bool  # whether the tokenizer adds its own, a BOS in front
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
        encoding = self.tokenizer.encode(
            prefix + text + suffix, add_special_tokens=self.special_tokens
        )
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
                what, how = "prompt template and last token", "raise it"
                if image_tokens:
                    what = f"image tokens, {what}"
                    how = f"{how}, or process images at a lower resolution"
                raise ValueError(
                    f"{name_of(item)}: its {what} are {fixed} tokens, and max_length is"
                    f" {self.max_length}; {how}"
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

    def image_frames(self) -> tuple[tuple[str, str], ...]:
        """What stands before and after a text without markers, by number of images."""
        line = f"{self.image_token}\n"
        return self.frames or tuple((line * images, "") for images in range(MAX_IMAGES + 1))

    def markers(self) -> tuple[str, ...]:
        """Strings that stand for an image in a text."""
        numbered = (f"<|image_{number}|>" for number in range(1, MAX_IMAGES + 1))
        return (*numbered, self.image_token)

    def _parts(self, item: Item) -> tuple[str, str, str, int]:
        """Prefix, text, suffix, and how many markers had no image."""
        images = len(item.pictures)
        text = item.prefix + item.text
        if self.style == "raw":
            text, orphans = self._placed(text, images)
            return "", text, item.suffix, orphans
        if images >= len(self.frames):
            raise ValueError(
                f"{name_of(item)} has {images} images; a prompt in this chat template has places"
                f" for {len(self.frames) - 1}"
            )
        text, markers = self._unmarked(text)
        prefix, suffix = self.frames[images]
        return prefix, text.strip(), item.suffix + suffix, max(0, markers - images)

    def _unmarked(self, text: str) -> tuple[str, int]:
        """A text without markers, and how many there were."""
        count, found = 0, 1
        while found:  # leaving one out may form another
            text, found = re.subn(f"(?:{self._marker().pattern})\n?", "", text)
            count += found
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
        return re.compile(rf"<\|image_[0-9]+\|>|{re.escape(self.image_token)}")


def open_tokenizer(folder: pathlib.Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer.

    Raises:
      ValueError: the folder has no tokenizer.json; without it transformers may make up another one.
    """
    if not (folder / "tokenizer.json").exists():
        raise ValueError(
            f"{folder} has no tokenizer.json: copy the one of the checkpoint it was made from."
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def open_prompt(
    folder: pathlib.Path,
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
    special_tokens = True
    if style == "chat":
        frames = _frames(folder, tokenizer, chat_template(folder, tokenizer), image_token)
        # As transformers: a BOS that the template writes is not added once more.
        bos = tokenizer.bos_token
        special_tokens = bos is None or not frames[0][0].startswith(bos)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    return Prompt(
        tokenizer=backend,
        style=style,
        frames=frames,
        image_token=image_token,
        image_token_id=image_token_id,
        special_tokens=special_tokens,
        max_length=max_length,
    )


def _frames(
    folder: pathlib.Path,
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


def chat_template(folder: pathlib.Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The checkpoint's multimodal chat template.

    It lies in `chat_template.jinja` or `chat_template.json`; only without them is it the one in the
    tokenizer's configuration, which in many checkpoints is still the language model's own.

    Raises:
      ValueError: the folder has no chat template.
    """
    for name in TEMPLATE_FILES:
        if (folder / name).exists():
            content = (folder / name).read_text("utf-8")
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
