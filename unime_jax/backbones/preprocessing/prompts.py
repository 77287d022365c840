"""Prompts: the token ids of an item, with a frame around its text and places for its media."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from unime_jax.backbones.preprocessing.chat_frames import MAX_IMAGES
from unime_jax.backbones.preprocessing.clip_places import (
    ClipPlaces,
    ClipTokens,
    MediaTokens,
    worded,
)
from unime_jax.backbones.preprocessing.fit import Segments, Span, fit
from unime_jax.backbones.preprocessing.token_ids import check_ids, check_tokenizer
from unime_jax.batch import Item
from unime_jax.data import image_markers
from unime_jax.data.settings import MissingImages, Style


class Tokenised(NamedTuple):
    """Token ids with one token for each place of an image or clip, and counts of what is left out.

    `counts`: how often the token of each place is repeated, in the order of the places.
    """

    ids: list[int]
    truncated: int  # tokens cut off; a lower bound for a very long text
    unmatched_markers: int  # image markers without an image
    counts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Prompt format of a run; picklable. Build it with `open_prompts.open_prompt`.

    "chat" puts the stripped text, its image markers left out, into the checkpoint's chat template.
    "raw" takes the text as it is, with image tokens where MMEB's markers `<|image_1|>` stand (in
    their order, whatever their numbers), and in front of it, each on a line, for images that have
    no marker: what VLM2Vec and UniME-V2 feed Qwen2-VL. "verbatim" puts such a text into the chat
    template's turn without images, and as LLaVE does, it moves the image of a text with a single
    one to the front, the rest stripped, if it is not there already. Clips have the clip token where
    images have theirs, or words that take its place.

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
    clip_token: str = ""  # "": the model takes no clips; it may be the image token
    clip_token_id: int | None = None
    clip_place: str = ""  # what a clip's words take the place of, around its token
    clips: ClipPlaces | None = None  # in the chat template's frames; None: it has none

    @property
    def media_tokens(self) -> tuple[str, ...]:
        """Those of images and clips."""
        return tuple(dict.fromkeys(filter(None, (self.image_token, self.clip_token))))

    def rendered(self, item: Item) -> str:
        """The prompt of an item as text, with a single token where an image or clip goes."""
        segments, _ = self._segments(item)
        return "".join(segments)

    def order(self, item: Item) -> list[int]:
        """Numbers of an item's media in the order in which they stand in its prompt."""
        numbers = list(range(len(item.media)))
        if self.style not in ("chat", "system") or not self.clips:
            return numbers
        first = "image" if self.clips.images_first else "clip"
        return sorted(numbers, key=lambda number: item.media[number].kind != first)

    def __call__(self, item: Item, media_tokens: Sequence[MediaTokens]) -> Tokenised:
        """Token ids of an item. `media_tokens` are those of each of its media, in its order.

        Those beyond are of markers without an image that stand for one.

        A prompt longer than `max_length` loses tokens from the end of its text; never those of
        images and clips, the template around the text, or the last token, which is pooled.

        Raises:
          ValueError: it cannot be made short enough, has more images than there are places for, or
            a token that the model has no embedding of.
        """
        segments, unmatched_markers = self._segments(item)
        spans: list[Span] = []
        if self.clip_place:
            words = [tokens.words for tokens in media_tokens if isinstance(tokens, ClipTokens)]
            segments, spans = worded(segments, self.clip_token, self.clip_place, words)
        counts = [
            count
            for tokens in [
                *map(media_tokens.__getitem__, self.order(item)),
                *media_tokens[len(item.media) :],
            ]
            for count in (tokens.counts if isinstance(tokens, ClipTokens) else (tokens,))
        ]
        markers = image_markers.marker(*self.media_tokens).finditer(segments.text)
        ends = [*(marker.end() for marker in markers), *(end for _, end in spans)]
        fixed, remedy = "prompt template and last token", "raise it"
        if media_tokens:
            kinds = {media.kind: None for media in item.media} or {"image": None}
            fixed = f"{' and '.join(kinds)} tokens, {fixed}"
            remedy = f"{remedy}, or process images at a lower resolution"
            if "clip" in kinds:
                remedy = f"{remedy}, or clips in fewer frames (processing.frames)"
        ids, truncated = fit(
            segments,
            encode=self._encode,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            expansion=sum(counts) - len(counts),
            uncut_characters=max(ends, default=0),
            uncut_ids=self._media_ids,
            uncut_spans=spans,
            uncut_last=True,
            name=name_of(item),
            fixed=fixed,
            remedy=remedy,
        )
        if not ids:
            raise ValueError(f"{name_of(item)}: no text and no image, so no token to pool")
        check_ids(ids, self.tokenizer, self.vocab_size, name_of(item))
        return Tokenised(ids, truncated, unmatched_markers, tuple(counts))

    def expand(
        self, ids: Sequence[int], counts: Sequence[int]
    ) -> tuple[Int32[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
        """Ids with the token of each place repeated as `counts` says, and which of them these are.

        Image tokens beyond those of `counts` have no image: they are tokens like any other.
        """
        times, is_image = np.ones(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        places = np.flatnonzero(np.isin(ids, self._media_ids))[: len(counts)]
        times[places], is_image[places] = counts, True
        return np.repeat(np.asarray(ids, np.int32), times), np.repeat(is_image, times)

    def empty_places(self, item: Item) -> int:
        """Number of markers kept without an image, after those of the item's; 0 if it has clips."""
        if self.missing_images == "strip" or any(media.kind == "clip" for media in item.media):
            return 0
        marker = image_markers.marker(*self.media_tokens)
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
        if self.clips:
            around.append(self.clips.unit)
        always = [self._encode(text)[0] for text in ("", self.image_token, *around)]
        check_tokenizer(folder, self.tokenizer, self.vocab_size, always=always)

    @property
    def _media_ids(self) -> list[int]:
        return [token for token in (self.image_token_id, self.clip_token_id) if token is not None]

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and their spans in the text."""
        encoding = self.tokenizer.encode(text, add_special_tokens=self.special_tokens)
        return encoding.ids, encoding.offsets

    def _segments(self, item: Item) -> tuple[Segments, int]:
        """The prompt in three, and the number of markers without an image."""
        kept = self.empty_places(item)
        text, suffix = item.prefix + item.text, item.suffix
        if self.style == "chat":
            text, markers = image_markers.without_markers(text, *self.media_tokens)
            before, after = self._frame(item)
            unmatched = max(0, markers - len(item.media))
            return Segments(before, text.strip(), suffix + after), unmatched
        tokens = {"image": self.image_token, "clip": self.clip_token or self.image_token}
        places = [tokens[media.kind] for media in item.media] + [self.image_token] * kept
        text, stripped = self._placed(text, places)
        if self.style == "verbatim" and len(places) == 1 and not text.startswith(places[0]):
            words = text.replace(places[0], "", 1).lstrip()
            words = words if suffix else words.rstrip()
            text = f"{places[0]}\n{words}" if words + suffix else places[0]
        before, after = self._turn()
        return Segments(before, text, suffix + after), kept + stripped

    def _frame(self, item: Item) -> tuple[str, str]:
        """Strings around a text with the item's media in front, or a ValueError."""
        clips = sum(media.kind == "clip" for media in item.media)
        images = len(item.media) - clips + self.empty_places(item)
        if images >= len(self.frames):
            raise ValueError(
                f"{name_of(item)} has {images} images; a prompt in this chat template has"
                f" places for {len(self.frames) - 1}"
            )
        before, after = self.frames[images]
        if not clips:
            return before, after
        if self.clips is None or (images and self.clips.images_first is None):
            what = "clips beside images" if self.clips else "clips"
            raise ValueError(
                f"{name_of(item)}: the chat template has no places for {what}; take the"
                " checkpoint's own template, or another processing.prompt"
            )
        return self.clips.before(self.frames, images, clips), after

    def _turn(self) -> tuple[str, str]:
        """Strings before and after a text that has its image tokens in it."""
        return self.frames[0] if self.frames else ("", "")

    def _placed(self, text: str, tokens: Sequence[str]) -> tuple[str, int]:
        """A text with these tokens in its places, and the number of markers left out.

        Where there are fewer markers than tokens, the first tokens are in front.
        """
        pattern = image_markers.marker(*self.media_tokens)
        pieces: list[str] = []
        while len(pieces) < len(tokens) and (marker := pattern.search(text)):
            pieces.append(text[: marker.start()])
            text = text[marker.end() :]
        last, stripped = image_markers.without_markers(text, *self.media_tokens)
        unplaced = len(tokens) - len(pieces)
        lines = [f"{token}\n" for token in tokens[:unplaced]]
        placed = [piece + token for piece, token in zip(pieces, tokens[unplaced:], strict=True)]
        return "".join([*lines, *placed, last]), stripped


def name_of(item: Item) -> str:
    """An item in an error message."""
    text = item.text if len(item.text) <= 60 else item.text[:57] + "..."
    named = ", ".join(f"{media.kind} {media.path!r}" for media in item.media if media.path)
    return f"item {text!r} with {named}" if named else f"item {text!r}"
