"""Truncation of texts: the tokens that are cut, those that never are, and texts beyond all help."""

import random
import re

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from unime_jax.backbones.preprocessing import long_texts
from unime_jax.backbones.preprocessing.fit import Segments, fit

WORDS = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
WORDS.pre_tokenizer = pre_tokenizers.Whitespace()
IMAGE, SPECIAL = ord("@"), ord("!")


def encode(text: str, special: bool = False):
    """A token for each word, its first letter's number; a special one without characters behind."""
    words = list(re.finditer(r"\S+", text))
    ids, spans = [ord(word[0][0]) for word in words], [word.span() for word in words]
    return (ids + [SPECIAL], spans + [(0, 0)]) if special else (ids, spans)


def fitted(text: str, max_length: int, before="< ", after=" >", special=False, **options):
    """What is left, as letters, and the number of tokens cut off."""
    ids, truncated = fit(
        Segments(before, text, after),
        encode=lambda text: encode(text, special),
        tokenizer=WORDS,
        max_length=max_length,
        **{"name": "item 'x'", "fixed": "frame", "remedy": "raise it"} | options,
    )
    return "".join(map(chr, ids)), truncated


def test_the_text_alone_is_cut_to_the_longest_length(monkeypatch):
    # The text alone is cut and the tokens are counted.
    for text, options, expected in (
        ("a b c d", dict(max_length=6), ("<abcd>", 0)),
        ("a b c d", dict(max_length=4), ("<ab>", 2)),
        ("a b c d", dict(max_length=4, side="left"), ("<cd>", 2)),
        ("a b c d", dict(max_length=2), ("<>", 4)),
        ("", dict(max_length=2), ("<>", 0)),
        ("", dict(max_length=0, before="", after=""), ("", 0)),
        ("a b c d", dict(max_length=3, before="", after=""), ("abc", 1)),
        ("a b c", dict(max_length=4, special=True), ("<a>!", 2)),
        ("a b c", dict(max_length=4, special=True, side="left"), ("<c>!", 2)),
        ("a b c", dict(max_length=2, special=True, before="", after=""), ("a!", 2)),
    ):
        assert fitted(text, **options) == expected, (text, options)

    # Some tokens of a text are never cut. Image tokens, of which each stands for many, the one
    # that is pooled, and the frame's own.
    for text, options, expected in (
        ("a @ b c", dict(max_length=8, expansion=3, uncut_ids=(IMAGE,)), ("<a@b>", 1)),
        ("a b @ c", dict(max_length=6, expansion=3, uncut_ids=(IMAGE,)), ("<@>", 3)),
        ("a @ b c", dict(max_length=4, uncut_ids=(IMAGE,), side="left"), ("<@c>", 2)),
        ("a b c", dict(max_length=3, after="", uncut_last=True), ("<ac", 1)),
        ("a b c", dict(max_length=3, after="", uncut_last=False), ("<ab", 1)),
        ("a b c", dict(max_length=4, after="d >"), ("<ac>", 1)),  # "cd" is one token
        ("a b c", dict(max_length=2, before="<", after=">"), ("<c", 1)),  # so are "<a" and "c>"
    ):
        assert fitted(text, **options) == expected, (text, options)

    # A frame beyond the longest length is an error.
    options = dict(expansion=10, uncut_ids=(IMAGE,), fixed="images and frame")
    assert fitted("a @ b", 13, **options) == ("<@>", 2)
    message = "^item 'x': its images and frame are 13 tokens, and max_length is 12; raise it$"
    for text in ("a @ b", "@", "a b c d e @"):
        with pytest.raises(ValueError, match=message):
            fitted(text, 12, **options)

    # Very long texts are cut as if tokenised whole. Also around an image token, which an
    # excerpt must hold; fewer tokens may be counted.
    generator, fewer = random.Random(0), 0
    for _ in range(200):
        words = generator.choices(["a", "bc", "d1", "3", "e\nf", "(g)"], k=generator.randrange(400))
        head = " ".join(words[: generator.randrange(8)] + ["@"])
        text = head + " " + " ".join(words)
        options = dict(
            uncut_ids=(IMAGE,),
            uncut_characters=len(head),
            uncut_last=generator.random() < 0.5,
            after=generator.choice(["", " >", "h >"]),
            side=generator.choice(["left", "right"]),
        )
        max_length = generator.randrange(4, 40)
        monkeypatch.setattr(long_texts, "CHARACTERS", 10**9)
        whole, all_of_them = fitted(text, max_length, **options)
        monkeypatch.setattr(long_texts, "CHARACTERS", 1)
        ids, truncated = fitted(text, max_length, **options)
        assert ids == whole, (text, max_length, options)
        assert bool(truncated) == bool(all_of_them) and truncated <= all_of_them
        fewer += truncated < all_of_them
    assert fewer > 50, "otherwise little was tried"
    for side in ("left", "right"):  # nothing of the text is left
        assert fitted(" ".join("ab" * 1000), 2, side=side)[0] == "<>"
