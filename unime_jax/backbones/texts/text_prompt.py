"""Rows of families that read texts only: no template, no images."""

import dataclasses
import pathlib

import numpy as np
import tokenizers

from unime_jax.backbones.preprocessing.fit import Segments, Span, fit
from unime_jax.backbones.preprocessing.long_texts import Side
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.backbones.preprocessing.token_ids import check_ids, check_tokenizer
from unime_jax.batch import Item, Row
from unime_jax.data.shapes import Layout

PROCESSING = Processing(prompt="raw")  # there is nothing to choose


@dataclasses.dataclass(frozen=True)
class TextPrompt:
    """Prompt format of text encoders: prefix, text and suffix of an item, then `ending`; picklable.

    The tokenizer adds its own special tokens around that.
    """

    tokenizer: tokenizers.Tokenizer
    ending: str
    vocab_size: int  # rows of the model's embedding
    max_length: int
    cut: Side = "right"  # the side of a text that is cut if it is too long

    def rendered(self, item: Item) -> str:
        """The tokenizer's input."""
        return "".join(self._segments(item))

    def __call__(self, item: Item) -> tuple[list[int], int]:
        """Token ids, and the number of tokens cut off, a lower bound for a very long text.

        A prompt longer than `max_length` loses tokens of its text, never of the prefix, the suffix,
        the ending or the special tokens.

        Raises:
          ValueError: there are images, or no tokens, it cannot be made short enough, or a token
            has no embedding.
        """
        if item.media:
            kind = item.media[0].kind
            raise ValueError(f"{name_of(item)}: this model embeds texts only; leave out the {kind}")
        ids, truncated = fit(
            self._segments(item),
            encode=self._encode,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            side=self.cut,
            name=name_of(item),
            fixed="prefix, suffix and special tokens",
            remedy="raise it, or shorten the prefix",
        )
        if not ids:
            raise ValueError(f"{name_of(item)}: an empty text, so no token to pool")
        check_ids(ids, self.tokenizer, self.vocab_size, name_of(item))
        return ids, truncated

    def check_tokenizer(self, folder: pathlib.Path) -> None:
        """Raises ValueError if ordinary texts, or every prompt, have tokens without embedding."""
        always = [self.tokenizer.encode(self.ending).ids]
        check_tokenizer(folder, self.tokenizer, self.vocab_size, always=always)

    def count(self, text: str) -> int:
        """Number of tokens of a text alone, without special ones."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _segments(self, item: Item) -> Segments:
        return Segments(item.prefix, item.text, item.suffix + self.ending)

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self.tokenizer.encode(text)
        return encoding.ids, encoding.offsets


@dataclasses.dataclass(frozen=True)
class TextPreprocessor:
    """Callable `Item -> Row`; picklable. Positions are 0, 1, ... (A = 1), slots -1 (S = 1).

    With `prefix_left_out`, pooling starts after as many tokens as the prefix has, counted as in
    NV-Embed: without the BOS, so that the last token of the prefix is pooled.
    """

    prompt: TextPrompt
    prefix_left_out: bool
    learned_positions: int | None  # rows of a table of positions; None: there is none

    @property
    def layout(self) -> Layout:
        """Sizes that all rows share."""
        return Layout(
            pooled=self.prefix_left_out,
            vocabulary=self.prompt.vocab_size,
            learned_positions=self.learned_positions,
        )

    def __call__(self, item: Item) -> Row:
        """Row of an item; `truncated` counts the tokens cut off.

        Raises:
          ValueError: there are images, the row cannot be made short enough, or no token is pooled.
        """
        ids, truncated = self.prompt(item)
        start = self.prompt.count(item.prefix) if self.prefix_left_out else 0
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
    """Raises ValueError if a run chooses a processing; texts have one only."""
    if processing != PROCESSING:
        raise ValueError(
            f"{folder} embeds texts only, so there is no choice of processing: leave it out,"
            f" or give {PROCESSING}, not {processing}"
        )
