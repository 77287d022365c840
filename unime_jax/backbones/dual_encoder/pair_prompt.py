"""The text of an item for a tower of texts, apart from its images."""

import dataclasses
import pathlib
from typing import Literal

import tokenizers

from unime_jax.backbones.preprocessing.fit import Segments, Span, fit
from unime_jax.backbones.preprocessing.prompts import Tokenised, name_of
from unime_jax.backbones.preprocessing.token_ids import check_ids, check_tokenizer
from unime_jax.batch import Item
from unime_jax.data import image_markers


@dataclasses.dataclass(frozen=True)
class Padding:
    """Padding of every text to `max_length`, with a token that counts as one of the text's."""

    token: int
    side: Literal["left", "right"]


@dataclasses.dataclass(frozen=True)
class PairPrompt:
    """Prompt format of dual encoders: prefix, text and suffix without image markers; picklable.

    An item with images whose text is then white space has no text. The tokenizer adds its own
    special tokens.
    """

    tokenizer: tokenizers.Tokenizer
    vocab_size: int  # rows of the model's embedding
    max_length: int
    padding: Padding | None = None

    def rendered(self, item: Item) -> str:
        """The tokenizer's input; "" for an item without a text."""
        segments, _ = self._segments(item)
        text = "".join(segments)
        return "" if item.media and not text.strip() else text

    def __call__(self, item: Item) -> Tokenised:
        """Token ids of an item, none if it has no text; padded, if the model is used so.

        A text beyond `max_length` loses tokens from its end, never of the suffix or the special
        tokens.

        Raises:
          ValueError: it cannot be made short enough, or a token has no embedding.
        """
        segments, unmatched_markers = self._segments(item)
        if item.media and not "".join(segments).strip():
            return Tokenised([], 0, unmatched_markers)
        ids, truncated = fit(
            segments,
            encode=self._encode,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            name=name_of(item),
            fixed="suffix and special tokens",
            remedy="shorten the suffix",
        )
        if not ids:
            raise ValueError(f"{name_of(item)}: an empty text, so no token to pool")
        check_ids(ids, self.tokenizer, self.vocab_size, name_of(item))
        return Tokenised(self._padded(ids), truncated, unmatched_markers)

    def check_tokenizer(self, folder: pathlib.Path) -> None:
        """Raises ValueError if ordinary texts, or every prompt, have tokens without embedding."""
        always = [self.tokenizer.encode("").ids]
        if self.padding:
            always.append([self.padding.token])
        check_tokenizer(folder, self.tokenizer, self.vocab_size, always=always)

    def _padded(self, ids: list[int]) -> list[int]:
        if self.padding is None:
            return ids
        padding = [self.padding.token] * (self.max_length - len(ids))
        return padding + ids if self.padding.side == "left" else ids + padding

    def _segments(self, item: Item) -> tuple[Segments, int]:
        """The prompt in three, and the number of markers without an image."""
        text, markers = image_markers.without_markers(item.prefix + item.text)
        return Segments("", text, item.suffix), max(0, markers - len(item.media))

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self.tokenizer.encode(text)
        return encoding.ids, encoding.offsets
