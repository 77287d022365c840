"""Excerpts of long texts, made before tokenisation where that cannot change the kept tokens.

A tokenizer takes some 400 bytes a character, and of a text beyond the longest length most tokens
are cut off again (`fit`). So a text is first shortened at a seam: a space or line feed between two
letters, which no token of the vocabulary has in it. The text on each side of a seam is tokenised as
if it stood alone, by BPE (no merge reaches over a seam), by Unigram (no path does) and by all
models that split words first.
"""

import functools
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import tokenizers

Side = Literal["left", "right"]

CHARACTERS = 16  # of text that are tokenised at first, for each token that there is room for

_SEAM = re.compile(r"(?<=[^\W\d_])[ \n](?=[^\W\d_])")
_CROSSING = re.compile(r"(?:[^\W\d_]|\ufffd)[ \n▁]")  # a token over a seam
_SAMPLE = "ab cd\nef"


class Excerpt(NamedTuple):
    """Beginning and end of a text, joined at character `seam`; the whole text if that is None."""

    text: str
    seam: int | None


def excerpts(
    text: str, tokenizer: tokenizers.Tokenizer, *, room: int, keep: int, side: Side
) -> Iterator[Excerpt]:
    """Growing excerpts of a text, the last one whole; a short or seamless text comes whole at once.

    Args:
      text: of an item.
      tokenizer: for which the text is.
      room: tokens that can be kept at most.
      keep: characters at the beginning that are never left out.
      side: the side that tokens will be cut from, so that more of the other is given.
    """
    size = max(keep, CHARACTERS * room)
    if len(text) > 2 * size and _has_seams(tokenizer):
        first, last = _SEAM.search(text, keep), _last_seam(text, keep)
        while first and last is not None and 2 * size < len(text):
            if side == "left":
                head, seam = first.start(), _SEAM.search(text, len(text) - size)
                tail = seam.start() if seam else head
            else:
                tail, seam = last, _SEAM.search(text, size)
                head = seam.start() if seam else tail
            if head >= tail:
                break
            yield Excerpt(text[:head] + text[tail:], head)
            size *= 2
    yield Excerpt(text, None)


def _last_seam(text: str, first: int) -> int | None:
    """Last seam behind `first`, searched from the end."""
    width = 1000
    while True:
        start = max(first, len(text) - width)
        seams = [seam.start() for seam in _SEAM.finditer(text, start)]
        if seams or start == first:
            return seams[-1] if seams else None
        width *= 8


@functools.lru_cache(maxsize=8)  # by the object: it looks at the whole vocabulary
def _has_seams(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether no token crosses a seam, and the normaliser keeps seams in place."""
    if any(_crosses(token) for token in tokenizer.get_vocab()):
        return False
    sample = _SAMPLE
    if tokenizer.normalizer is not None:
        sample = tokenizer.normalizer.normalize_str(sample)
        if not re.search(r"b[ ▁]+c.*d[ \n▁]+e", sample, re.DOTALL | re.IGNORECASE):
            return False
    if type(tokenizer.model).__name__ in ("BPE", "Unigram"):
        return True
    if tokenizer.pre_tokenizer is None:
        return False
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(sample)]
    return not any(_SEAM.search(word) for word in words)


def _crosses(token: str) -> bool:
    """Whether a letter and a space stand together in a token, however the vocabulary writes them.

    SentencePiece writes "▁" for a space, byte-level BPE a sign of its own for each byte; of a
    letter that begins in another token, only its last bytes are there.
    """
    if _CROSSING.search(token):
        return True
    signs = _byte_signs()
    if not ("Ġ" in token[1:] or "Ċ" in token[1:]) or not all(sign in signs for sign in token):
        return False
    text = bytes(signs[sign] for sign in token).decode(errors="replace")
    return bool(_CROSSING.search(text))


@functools.cache
def _byte_signs() -> dict[str, int]:
    """Bytes by their characters in byte-level BPE: the same, or the next free character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {chr(byte): byte for byte in printable}
    return signs | {chr(256 + number): byte for number, byte in enumerate(others)}
