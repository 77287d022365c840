"""Prompts with numbered places between texts for images, instead of vocabulary tokens."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from unime_jax.backbones.preprocessing import chat_templates
from unime_jax.backbones.preprocessing.chat_frames import MAX_IMAGES, frame
from unime_jax.backbones.preprocessing.fit import Span
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.batch import Item
from unime_jax.data import image_markers
from unime_jax.data.settings import Style

IMAGE_TOKEN_ID = -1  # in `Tokenised.ids`; it must not reach the model

_PLACE = re.compile(image_markers.NUMBERED)


@dataclasses.dataclass(frozen=True)
class NumberedPrompt(Prompt):
    """Prompt format of Phi-3.5-Vision; picklable.

    `<|image_k|>` in a text stands for the k-th image, as often as it is there; images that have no
    place get one each, on lines in front. The texts between places are tokenised one by one, so
    each begins with the tokenizer's own special tokens, a BOS: also an empty one at the end.
    """

    def shown(self, item: Item) -> list[int]:
        """Number of the image, from 0, at each place of the prompt."""
        places = _PLACE.findall(self.rendered(item))
        return [image_markers.number(place) - 1 for place in places]

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        spans: list[Span] = []
        start = 0
        for place in (*_PLACE.finditer(text), None):
            stop = place.start() if place else len(text)
            piece_ids, piece_spans = super()._encode(text[start:stop])
            ids += piece_ids
            spans += [(start + first, start + end) for first, end in piece_spans]
            if place:
                ids.append(self.image_token_id)
                spans.append(place.span())
                start = place.end()
        return ids, spans

    def _placed(self, text: str, tokens: Sequence[str]) -> tuple[str, int]:
        own = [f"<|image_{number + 1}|>" for number in range(len(tokens))]
        known = "|".join(map(re.escape, own)) or "(?!)"
        others = f"(?!{known}){image_markers.NUMBERED}\n?"
        text, stripped = image_markers.removed(others, text)
        placed = set(_PLACE.findall(text))
        lines = (f"{place}\n" for place in own if place not in placed)
        return "".join(lines) + text, stripped


def open_numbered_prompt(
    folder: pathlib.Path, *, vocab_size: int, style: Style, max_length: int
) -> NumberedPrompt:
    """Prompt of a checkpoint, from its tokenizer and chat template.

    Raises:
      ValueError: there is no usable tokenizer or chat template, the style is for others, or the
        model has no embedding of tokens in ordinary use.
    """
    # By the files alone: of the class that config.json asks for, transformers knows nothing.
    tokenizer = open_tokenizer(folder, "PreTrainedTokenizerFast")
    frames: tuple[tuple[str, str], ...] = ()
    special_tokens = True
    if style == "chat":
        before, after = chat_templates.use(
            folder, lambda template: frame(tokenizer, template, images=None)
        )
        places = [f"<|image_{number + 1}|>\n" for number in range(MAX_IMAGES)]
        frames = tuple((before + "".join(places[:n]), after) for n in range(MAX_IMAGES + 1))
        special_tokens = tokenizer.bos_token is None or not before.startswith(tokenizer.bos_token)
    elif style != "raw":
        raise ValueError(f'processing.prompt is "{style}"; Phi-3.5-Vision has "raw" and "chat"')
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    prompt = NumberedPrompt(
        tokenizer=backend,
        style=style,
        frames=frames,
        image_token="<|image_1|>",
        image_token_id=IMAGE_TOKEN_ID,
        special_tokens=special_tokens,
        vocab_size=vocab_size,
        max_length=max_length,
    )
    prompt.check_tokenizer(folder)
    return prompt
