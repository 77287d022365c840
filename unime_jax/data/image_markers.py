"""Grammar of image markers, the places that a text marks for its images and clips.

A marker is `<|image_` or `<|video_`, one or more ASCII digits, and `|>`, whatever the number:
`<|image_1|>`, `<|image_12|>`, `<|video_1|>`, also `<|image_0|>` and `<|image_01|>`. `<|image_|>`,
`<|image_x|>` and `<|IMAGE_1|>` are text. MMEB and its successors write `<|image_1|>`, its videos
`<|video_1|>`. A model's own image token counts as one, too. Which image a marker stands for is up
to the family: mostly an item's images and clips take them in order, of whichever spelling.

A marker that is left out takes one line end after it along; all of a text are left out at once,
and then those that this has formed, until there is none. The chat template of
`export/sentence_transformers.py` does the same in Jinja, which has no regular expressions.
"""

import re

NUMBERED = r"<\|(?:image|video)_[0-9]+\|>"
DEEPEST = 100  # markers within each other; each level is one more look at the whole text


def number(marker: str) -> int:
    """Number in a numbered marker."""
    return int(marker.rpartition("_")[2].removesuffix("|>"))


def marker(*tokens: str) -> re.Pattern[str]:
    """Pattern of a numbered marker or one of the model's own tokens of images and clips."""
    return re.compile("|".join([NUMBERED, *map(re.escape, tokens)]))


def without_markers(text: str, *tokens: str) -> tuple[str, int]:
    """Text without its markers, and the number of markers removed.

    `tokens` are the model's own of images and clips, which are removed like numbered markers.
    """
    return removed(f"(?:{marker(*tokens).pattern})\n?", text)


def removed(pattern: str, text: str) -> tuple[str, int]:
    """Text without matches, nor those that removals form, and the number of matches.

    Raises:
      ValueError: matches lie within each other more than `DEEPEST` deep, which no writer means.
    """
    count = 0
    for _ in range(DEEPEST):
        text, matches = re.subn(pattern, "", text)
        count += matches
        if not matches:
            return text, count
    raise ValueError(f"image markers lie within each other, more than {DEEPEST} deep")
