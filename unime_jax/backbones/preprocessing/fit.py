"""Truncation: the text of a prompt loses tokens until its row fits the longest length."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import tokenizers

from unime_jax.backbones.preprocessing.long_texts import Excerpt, Side, excerpts

Span = tuple[int, int]  # characters of a token: the first, and the one after the last
Encode = Callable[[str], tuple[list[int], list[Span]]]


class Segments(NamedTuple):
    """A prompt in three parts. Only `text` may be cut."""

    before: str
    text: str
    after: str


class Fitted(NamedTuple):
    """Token ids that fit, and the number of tokens cut off.

    The number is a lower bound for texts that are too long to be tokenised whole.
    """

    ids: list[int]
    truncated: int


def fit(
    segments: Segments,
    *,
    encode: Encode,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    expansion: int = 0,
    side: Side = "right",
    uncut_characters: int = 0,
    uncut_ids: Collection[int] = (),
    uncut_spans: Collection[Span] = (),
    uncut_last: bool = False,
    name: str,
    fixed: str,
    remedy: str,
) -> Fitted:
    """Token ids of a prompt, of which tokens within the text are cut off at one side.

    A token that reaches over an end of the text is not cut, nor one without characters, such as a
    special token that the tokenizer adds.

    Args:
      segments: the prompt.
      encode: token ids and spans of a string.
      tokenizer: the one behind `encode`; it decides where a very long text may be shortened.
      max_length: tokens of the row.
      expansion: tokens that the row has beyond the ids, because an image token stands for many.
      side: the side of the text that tokens are cut from.
      uncut_characters: characters at the start of the text that hold all of `uncut_ids` and
        `uncut_spans`.
      uncut_ids: tokens that are never cut.
      uncut_spans: characters of the text whose tokens are never cut.
      uncut_last: whether the last token of the prompt, which is pooled, is never cut.
      name: the item, for the error message.
      fixed: what is never cut, for the error message.
      remedy: what the user can do, for the error message.

    Raises:
      ValueError: the tokens that are never cut are more than `max_length`.
    """
    for excerpt in excerpts(
        segments.text, tokenizer, room=max_length, keep=uncut_characters, side=side
    ):
        ids, spans = encode(segments.before + excerpt.text + segments.after)
        excess = max(0, len(ids) + expansion - max_length)
        if not excess and excerpt.seam is None:
            return Fitted(ids, 0)
        start = len(segments.before)
        stop = start + len(excerpt.text)
        cuttable = [
            i
            for i, (first, end) in enumerate(spans[: len(spans) - uncut_last])
            if start <= first < end <= stop
            and ids[i] not in uncut_ids
            and not any(start + a < end and first < start + b for a, b in uncut_spans)
        ]
        if _is_enough(excerpt, start, spans, cuttable, excess, side):
            break
    if len(cuttable) < excess:
        raise ValueError(
            f"{name}: its {fixed} are {len(ids) + expansion - len(cuttable)} tokens, and"
            f" max_length is {max_length}; {remedy}"
        )
    cut = set(cuttable[-excess:] if side == "right" else cuttable[:excess])
    return Fitted([token for i, token in enumerate(ids) if i not in cut], excess)


def _is_enough(
    excerpt: Excerpt,
    start: int,
    spans: Sequence[Span],
    cuttable: Sequence[int],
    excess: int,
    side: Side,
) -> bool:
    """Whether an excerpt leaves the same tokens as the whole text would.

    So it is if all tokens on one side of its seam are cut off: those that are left are then the
    first ones (or the last) of the whole text, too. `start` is the text's place in the prompt.
    """
    if excerpt.seam is None:
        return True
    if not excess or len(cuttable) <= excess:
        return excess > 0
    seam = start + excerpt.seam
    if side == "left":
        return spans[cuttable[excess]][0] >= seam
    return spans[cuttable[-excess]][0] <= seam
