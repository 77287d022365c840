"""Prompts: the token ids of an item, with a frame around its text and places for its images."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from unime_jax.backbones.preprocessing import chat_templates
from unime_jax.backbones.preprocessing.chat_frames import MAX_IMAGES, frames_of
from unime_jax.backbones.preprocessing.fit import Segments, Span, fit
from unime_jax.backbones.preprocessing.token_ids import check_ids, check_tokenizer
from unime_jax.batch import Item
from unime_jax.data import image_markers
from unime_jax.data.settings import MissingImages, Style

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenised(NamedTuple):
    """Token ids with one image token for each image, and counts of tokens and markers left out."""

    ids: list[int]
    truncated: int  # tokens cut off; a lower bound for a very long text
    unmatched_markers: int  # image markers without an image


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Prompt format of a run; picklable. Build it with `open_prompt`.

    "chat" puts the stripped text, its image markers left out, into the checkpoint's chat template.
    "raw" takes the text as it is, with image tokens where MMEB's markers `<|image_1|>` stand (in
    their order, whatever their numbers), and in front of it, each on a line, for images that have
    no marker: what VLM2Vec and UniME-V2 feed Qwen2-VL. "verbatim" puts such a text into the chat
    template's turn without images, and as LLaVE does, it moves the image of a text with a single
    one to the front, the rest stripped, if it is not there already.

    `image_markers` says what a marker is; the image token itself counts as one. A marker that has
    no image is left out, with the newline after it, if `missing_images` is "strip"; else it
    is treated as those that have one, and is the image token where an image would be.
    """

    tokenizer: tokenizers.Tokenizer
    style: Style
    frames: tuple[tuple[str, str], ...]  # before and after the text, by number of images
    image_token: str
    image_token_id: int
    special_tokens: bool  # whether the tokenizer adds its own, a BOS in front
    vocab_size: int  # rows of the model's embedding
    max_length: int
    missing_images: MissingImages = "strip"

    def rendered(self, item: Item) -> str:
        """The prompt of an item as text, with a single image token where an image goes."""
        segments, _ = self._segments(item)
        return "".join(segments)

    def __call__(self, item: Item, image_tokens: Sequence[int]) -> Tokenised:
        """Token ids of an item. `image_tokens` are the tokens that each of its images will take.

        A prompt longer than `max_length` loses tokens from the end of its text; never image tokens,
        the template around the text, or the last token, which is pooled.

        Raises:
          ValueError: it cannot be made short enough, has more images than there are places for, or
            a token that the model has no embedding of.
        """
        segments, unmatched_markers = self._segments(item)
        markers = image_markers.marker(self.image_token).finditer(segments.text)
        fixed, remedy = "prompt template and last token", "raise it"
        if image_tokens:
            fixed = f"image tokens, {fixed}"
            remedy = f"{remedy}, or process images at a lower resolution"
        ids, truncated = fit(
            segments,
            encode=self._encode,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            expansion=sum(image_tokens) - len(image_tokens),
            uncut_characters=max((marker.end() for marker in markers), default=0),
            uncut_ids=(self.image_token_id,),
            uncut_last=True,
            name=name_of(item),
            fixed=fixed,
            remedy=remedy,
        )
        if not ids:
            raise ValueError(f"{name_of(item)}: no text and no image, so no token to pool")
        check_ids(ids, self.tokenizer, self.vocab_size, name_of(item))
        return Tokenised(ids, truncated, unmatched_markers)

    def expand(
        self, ids: Sequence[int], image_tokens: Sequence[int]
    ) -> tuple[Int32[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
        """Ids with each image token repeated as often as its image needs it, and their places.

        Image tokens beyond those of `image_tokens` have no image: they are tokens like any other.
        """
        counts, is_image = np.ones(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        places = np.flatnonzero(np.asarray(ids) == self.image_token_id)[: len(image_tokens)]
        counts[places], is_image[places] = image_tokens, True
        return np.repeat(np.asarray(ids, np.int32), counts), np.repeat(is_image, counts)

    def empty_places(self, item: Item) -> int:
        """Number of markers kept without an image; those of an item's images come first."""
        if self.missing_images == "strip":
            return 0
        marker = image_markers.marker(self.image_token)
        markers = len(marker.findall(item.prefix + item.text))
        return max(0, markers - len(item.media))

    def image_frames(self) -> tuple[tuple[str, str], ...]:
        """Strings before and after a text without markers, by number of images."""
        if self.style == "chat":
            return self.frames
        (before, after), line = self._turn(), f"{self.image_token}\n"
        return tuple((before + line * images, after) for images in range(MAX_IMAGES + 1))

    def turns(self, text: str, images: int) -> tuple[list[dict[str, Any]], str]:
        """Messages that a chat template makes such a prompt of, and the prompt."""
        before, after = self.frames[images]
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        return [{"role": "user", "content": content}], before + text + after

    def check_tokenizer(self, folder: pathlib.Path) -> None:
        """Raises ValueError if ordinary texts, or every prompt, have tokens without embedding."""
        around = [text for frame in self.frames for text in frame]
        always = [self._encode(text)[0] for text in ("", self.image_token, *around)]
        check_tokenizer(folder, self.tokenizer, self.vocab_size, always=always)

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and their spans in the text."""
        encoding = self.tokenizer.encode(text, add_special_tokens=self.special_tokens)
        return encoding.ids, encoding.offsets

    def _segments(self, item: Item) -> tuple[Segments, int]:
        """The prompt in three, and the number of markers without an image."""
        kept = self.empty_places(item)
        images = len(item.media) + kept
        text, suffix = item.prefix + item.text, item.suffix
        if self.style == "chat":
            text, markers = image_markers.without_markers(text, self.image_token)
            before, after = self._frame(item, images)
            unmatched = max(0, markers - len(item.media))
            return Segments(before, text.strip(), suffix + after), unmatched
        text, stripped = self._placed(text, images)
        if self.style == "verbatim" and images == 1 and not text.startswith(self.image_token):
            words = text.replace(self.image_token, "", 1).lstrip()
            words = words if suffix else words.rstrip()
            text = f"{self.image_token}\n{words}" if words + suffix else self.image_token
        before, after = self._turn()
        return Segments(before, text, suffix + after), kept + stripped

    def _frame(self, item: Item, images: int) -> tuple[str, str]:
        """Strings around a text with so many images in front, or a ValueError."""
        if images >= len(self.frames):
            raise ValueError(
                f"{name_of(item)} has {images} images; a prompt in this chat template has"
                f" places for {len(self.frames) - 1}"
            )
        return self.frames[images]

    def _turn(self) -> tuple[str, str]:
        """Strings before and after a text that has its image tokens in it."""
        return self.frames[0] if self.frames else ("", "")

    def _placed(self, text: str, images: int) -> tuple[str, int]:
        """A text with an image token for each image, and the number of markers left out."""
        pattern = image_markers.marker(self.image_token)
        pieces: list[str] = []
        while len(pieces) < images and (marker := pattern.search(text)):
            pieces.append(text[: marker.start()])
            text = text[marker.end() :]
        last, stripped = image_markers.without_markers(text, self.image_token)
        unplaced = f"{self.image_token}\n" * (images - len(pieces))
        return unplaced + self.image_token.join([*pieces, last]), stripped


def open_tokenizer(
    folder: pathlib.Path,
    kind: Literal["AutoTokenizer", "PreTrainedTokenizerFast"] = "AutoTokenizer",
) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer, by a class of transformers.

    Raises:
      ValueError: the folder has no tokenizer.json; without it transformers may make up another one;
        or its tokenizer is code of its own.
    """
    if not (folder / "tokenizer.json").exists():
        raise ValueError(
            f"{folder} has no tokenizer.json: copy the one of the checkpoint it was made from."
        )
    import transformers  # takes a second, and torch with it where that is installed

    # Left open, it would ask on the terminal whether a repository's code may run.
    opener = getattr(transformers, kind)
    tokenizer: PreTrainedTokenizerBase = opener.from_pretrained(folder, trust_remote_code=False)
    return tokenizer


def open_prompt(
    folder: pathlib.Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    image_token_id: int,
    vocab_size: int,
    style: Style,
    max_length: int,
    missing_images: MissingImages = "strip",
    template: str | None = None,
) -> Prompt:
    """Prompt of a checkpoint, from its tokenizer and chat template.

    `template` is Jinja source that takes the place of the folder's own. `vocab_size` is the number
    of rows of the model's embedding.

    Raises:
      ValueError: the files contradict each other, there is no usable chat template, or the model
        has no embedding of tokens in ordinary use.
    """
    if style == "system":
        raise ValueError(
            f'{folder}: processing.prompt is "system", an instruction in a turn of its own, which'
            ' is Qwen3-VL\'s; this family has "chat", "verbatim" and "raw"'
        )
    image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
    if image_token not in tokenizer.get_added_vocab():
        raise ValueError(
            f"{folder}: the image token of config.json is {image_token_id}, which is"
            f" {image_token!r} in tokenizer.json and not an added (special) token"
        )
    frames: tuple[tuple[str, str], ...] = ()
    special_tokens = True
    if style != "raw":

        def make(source: str) -> tuple[tuple[str, str], ...]:
            return frames_of(tokenizer, source, image_token)

        frames = make(template) if template else chat_templates.use(folder, make)
        special_tokens = adds_special_tokens(tokenizer, frames[0][0])
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    prompt = Prompt(
        tokenizer=backend,
        style=style,
        frames=frames,
        image_token=image_token,
        image_token_id=image_token_id,
        special_tokens=special_tokens,
        vocab_size=vocab_size,
        max_length=max_length,
        missing_images=missing_images,
    )
    prompt.check_tokenizer(folder)
    return prompt


def adds_special_tokens(tokenizer: "PreTrainedTokenizerBase", beginning: str) -> bool:
    """Whether transformers adds the tokenizer's special tokens to a prompt of a chat template.

    A BOS that the template writes is not added once more.
    """
    bos = tokenizer.bos_token
    return bos is None or not beginning.startswith(bos)


def name_of(item: Item) -> str:
    """An item in an error message."""
    text = item.text if len(item.text) <= 60 else item.text[:57] + "..."
    named = ", ".join(f"{media.kind} {media.path!r}" for media in item.media if media.path)
    return f"item {text!r} with {named}" if named else f"item {text!r}"
