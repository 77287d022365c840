"""Text that strangers wrote: how long it may be, and how it is shown in logs, pages and cards."""

import re
import unicodedata

MAX_BYTES = 4 * 2**20  # of a text, in UTF-8; more is a mistake in the data

_SPACES = re.compile(r"[\r\n\t]+")
# What begins something in Markdown, or in the HTML that it may hold, inside a line or a table.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~$#!]|(?<![^\W_])_|_(?![^\W_])")


def text_fault(text: str) -> str:
    """Why a text is no usable item; "" if it is."""
    if len(text) > MAX_BYTES:
        return f"text of {len(text)} characters, the limit is {MAX_BYTES} bytes"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return f"text is not valid Unicode: {error.reason} at character {error.start}"
    return f"text of {size} bytes, the limit is {MAX_BYTES}" if size > MAX_BYTES else ""


def shown(text: str) -> str:
    """A text on one line, in which nothing is hidden and nothing acts.

    Line ends and tabs become spaces. Control characters, marks that change the direction of
    writing (U+202E), lone surrogates and others that have no shape of their own are written as
    Python would write them, \\u202e.
    """
    text = _SPACES.sub(" ", text)
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else c.encode("unicode_escape").decode() for c in text)


def markdown(text: str) -> str:
    """A text in a line of Markdown that shows it as it is."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], shown(text))


def markdown_code(text: str) -> str:
    """A text as code in a line of Markdown, between more backticks than it has in a row."""
    text = shown(text)
    mark = _longer_than_any("`", text)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{mark}{space}{text}{space}{mark}"


def markdown_block(text: str, language: str = "") -> str:
    """Lines as a fenced block of Markdown that nothing in them can close."""
    fence = _longer_than_any("```", text)
    lines = "\n".join(map(shown, text.split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"


def _longer_than_any(mark: str, text: str) -> str:
    runs = (len(run) for run in re.findall("`+", text))
    return "`" * max(len(mark), max(runs, default=0) + 1)


def _is_visible(character: str) -> bool:
    # Joiners, of category Cf, are spelling in Persian, Hindi and emoji; other spaces are spaces.
    return (
        character.isprintable()
        or character in "\u200c\u200d"
        or unicodedata.category(character) == "Zs"
    )
