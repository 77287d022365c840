"""Image markers: the one grammar of the places that a text marks for its images.

A marker is `<|image_k|>`, k a decimal number of ASCII digits, from 1, of any size, without leading
zeros: `<|image_1|>` and `<|image_12|>` are markers, `<|image_0|>`, `<|image_01|>` and `<|image_|>`
are text. MMEB and its successors write `<|image_1|>`. A model's own image token counts as one.

A marker that is left out takes one line end after it along. What leaving one out forms is left out
in turn, until there is none. `export/sentence_transformers.py` has the same in Jinja.
"""

import re

NUMBERED = r"<\|image_[1-9][0-9]*\|>"


def number(marker: str) -> int:
    """k of a numbered marker, from 1."""
    return int(marker.removeprefix("<|image_").removesuffix("|>"))


def marker(image_token: str) -> re.Pattern[str]:
    """A numbered marker or the model's own image token."""
    return re.compile(f"{NUMBERED}|{re.escape(image_token)}")


def without_markers(text: str, image_token: str = "") -> tuple[str, int]:
    """A text without its markers, and how many were left out.

    `image_token` is left out like the numbered ones, after them in each round; "": there is none.
    """
    patterns = [f"{NUMBERED}\n?"]
    if image_token:
        patterns.append(f"{re.escape(image_token)}\n?")
    count, found = 0, 1
    while found:
        found = 0
        for pattern in patterns:
            text, removed = re.subn(pattern, "", text)
            found += removed
        count += found
    return text, count
