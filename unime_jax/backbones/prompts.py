"""The text around an item: a checkpoint's chat template as a fixed prefix and suffix.

A chat template is a program, but for one user turn it only writes something before and something
after the text. It is therefore rendered once, checked to be such a frame, and not run again.
"""

import json
import os
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

MMEB_IMAGE_MARKER = "<|image_1|>"  # where the image goes in a text of MMEB
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

_NOT_MULTIMODAL = (
    "the chat template does not write the text of a user turn once where the turn's content is a"
    " list of image and text parts; it is probably the language model's own"
)
_PROBES = ("probe", "", "two\nlines", "{{ 'x' }} <b> & \"q\" \\n", "\u00e9\u4e2d\U0001f600  x")


def chat_template(folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The checkpoint's multimodal chat template.

    It lies in `chat_template.jinja` or `chat_template.json`; only without them is it the one in the
    tokenizer's configuration, which in many checkpoints is still the language model's own.

    Raises:
      ValueError: the folder (or hub repository) has no chat template.
    """
    for name in TEMPLATE_FILES:
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            with open(path, encoding="utf-8") as file:
                content = file.read()
            return json.loads(content)["chat_template"] if name.endswith(".json") else content
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    raise ValueError(
        f"{folder} has no chat template: no {' or '.join(TEMPLATE_FILES)}, and no 'chat_template'"
        " in tokenizer_config.json; copy the one of the checkpoint it was made from"
    )


def frame(tokenizer: PreTrainedTokenizerBase, template: str, *, image: bool) -> tuple[str, str]:
    """What the template writes before and after the text of one user turn.

    Args:
      tokenizer: renders the template.
      template: Jinja source.
      image: whether the turn holds an image before its text.

    Returns:
      (prefix, suffix), the suffix with the generation prompt.

    Raises:
      ValueError: the template fails on such a turn, or changes, repeats or omits the text.
    """

    def render(text: str) -> str:
        content: list[dict[str, str]] = [{"type": "image"}] if image else []
        content.append({"type": "text", "text": text})
        messages: list[Any] = [{"role": "user", "content": content}]
        try:
            rendered: Any = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (TypeError, jinja2.TemplateError) as error:
            raise ValueError(f"{_NOT_MULTIMODAL} ({error}): {template[:200]!r}") from error
        return rendered

    sentinel = "\x02text\x03"
    pieces = render(sentinel).split(sentinel)
    if len(pieces) != 2:
        raise ValueError(f"{_NOT_MULTIMODAL}: it writes {render(sentinel)!r} for {sentinel!r}")
    prefix, suffix = pieces
    for probe in _PROBES:
        if render(probe) != prefix + probe + suffix:
            raise ValueError(
                f"the chat template changes the text {probe!r}: {render(probe)!r} is not"
                f" {prefix!r} + text + {suffix!r}"
            )
    return prefix, suffix
