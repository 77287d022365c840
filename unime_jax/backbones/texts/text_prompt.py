"""From texts to rows, for families that read nothing else: no template, no images."""

import dataclasses
import pathlib
from typing import Literal

import numpy as np
import tokenizers

from unime_jax.backbones.preprocessing.long_texts import shortened
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.backbones.preprocessing.token_ids import check_ids, check_tokenizer
from unime_jax.batch import Item, Row
from unime_jax.data.shapes import Layout

PROCESSING = Processing(prompt="raw")  # there is nothing to choose


@dataclasses.dataclass(frozen=True)
class TextPrompt:
    """The item's prefix, text and suffix, and what the model wants after them; picklable.

    The tokenizer adds its own special tokens around that. `cut` is the side of the text that what
    is too long loses tokens from.
    """

    tokenizer: tokenizers.Tokenizer
    ending: str
    vocab_size: int  # rows of the model's embedding
    max_length: int
    cut: Literal["left", "right"] = "right"

    def rendered(self, item: Item) -> str:
        """What the tokenizer gets."""
        return item.prefix + item.text + item.suffix + self.ending

    def __call__(self, item: Item) -> tuple[list[int], int]:
        """Token ids, and how many were cut off, at least, where the text is very long.

        What is longer than `max_length` loses tokens of its text, never of the prefix, the suffix,
        the ending or the special tokens.

        Raises:
          ValueError: there are images, or no tokens, it cannot be made short enough, or a token
            has no embedding.
        """
        if item.media:
            kind = item.media[0].kind
            raise ValueError(f"{name_of(item)}: this model embeds texts only; leave out the {kind}")
        before = len(item.prefix)
        for part in shortened(item.text, self.tokenizer, room=self.max_length, cut=self.cut):
            encoding = self.tokenizer.encode(item.prefix + part.text + item.suffix + self.ending)
            ids = encoding.ids
            if not ids:
                raise ValueError(f"{name_of(item)}: an empty text, so no token to pool")
            excess = max(0, len(ids) - self.max_length)
            span = range(before, before + len(part.text) + 1)
            loose = [
                i
                for i, (first, last) in enumerate(encoding.offsets)
                if excess and first in span and last in span and first < last
            ]
            if part.is_enough(before, encoding.offsets, loose, excess, cut=self.cut):
                break
        if excess:
            if len(loose) < excess:
                raise ValueError(
                    f"{name_of(item)}: its prefix, suffix and special tokens are"
                    f" {len(ids) - len(loose)} tokens, and max_length is {self.max_length}; raise"
                    " it, or shorten the prefix"
                )
            cut = set(loose[-excess:] if self.cut == "right" else loose[:excess])
            ids = [token for i, token in enumerate(ids) if i not in cut]
        check_ids(ids, self.tokenizer, self.vocab_size, name_of(item))
        return ids, excess

    def check_tokenizer(self, folder: pathlib.Path) -> None:
        """Raises ValueError if ordinary texts, or every prompt, have tokens without embedding."""
        always = [self.tokenizer.encode(self.ending).ids]
        check_tokenizer(folder, self.tokenizer, self.vocab_size, always=always)

    def pieces(self, text: str) -> int:
        """Tokens of a text alone, without special ones."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


@dataclasses.dataclass(frozen=True)
class TextPreprocessor:
    """Callable `Item -> Row`; picklable. Positions are 0, 1, ... (A = 1), slots -1 (S = 1).

    With `prefix_left_out`, pooling starts at the prefix's number of tokens, counted as NV-Embed
    counts them: without the tokenizer's BOS, which comes first, so that the last one is pooled.
    """

    prompt: TextPrompt
    prefix_left_out: bool
    learned_positions: int | None  # rows of a table of positions; None: there is none

    @property
    def layout(self) -> Layout:
        """Of all rows."""
        return Layout(
            pooled=self.prefix_left_out,
            vocabulary=self.prompt.vocab_size,
            learned_positions=self.learned_positions,
        )

    def __call__(self, item: Item) -> Row:
        """One row; `truncated` counts the tokens that were cut off.

        Raises:
          ValueError: there are images, the row cannot be made short enough, or no token is pooled.
        """
        ids, truncated = self.prompt(item)
        start = self.prompt.pieces(item.prefix) if self.prefix_left_out else 0
        if start >= len(ids):
            raise ValueError(
                f"{name_of(item)}: its prefix takes all {len(ids)} tokens, so none is pooled"
            )
        return Row(
            tokens=np.array(ids, np.int32),
            positions=np.arange(len(ids), dtype=np.int32)[:, None],
            slot=np.full((len(ids), 1), -1, np.int32),
            pool_start=start,
            truncated=truncated,
        )


def check(folder: pathlib.Path, processing: Processing) -> None:
    """Raises ValueError where a run asks for choices that there are not."""
    if processing != PROCESSING:
        raise ValueError(
            f"{folder} embeds texts only, so there is no choice of processing: leave it out,"
            f" or give {PROCESSING}, not {processing}"
        )
