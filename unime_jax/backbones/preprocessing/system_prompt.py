"""Prompts whose instruction is a system turn: Qwen3-VL-Embedding's contract."""

import dataclasses
import functools
import pathlib
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

import tokenizers

from unime_jax.backbones.preprocessing import chat_templates
from unime_jax.backbones.preprocessing.chat_frames import clips_of, system_frames_of
from unime_jax.backbones.preprocessing.clip_places import ClipPlaces
from unime_jax.backbones.preprocessing.fit import Segments
from unime_jax.backbones.preprocessing.open_prompts import adds_special_tokens, open_prompt
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.batch import Item
from unime_jax.data import image_markers
from unime_jax.data.settings import MissingImages, Style

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT = "Represent the user's input."  # the instruction of items without one
NOTHING = "NULL"  # the text of items without text and images


def closed(instruction: str) -> str:
    """An instruction as a sentence: `DEFAULT` for none, and a full stop unless it ends in one.

    The end is any character that Unicode counts as punctuation.
    """
    instruction = instruction.strip() or DEFAULT
    return instruction if _is_punctuation(instruction[-1]) else f"{instruction}."


@functools.cache
def punctuation() -> str:
    """All characters that `closed` takes for an end."""
    return "".join(filter(_is_punctuation, map(chr, range(sys.maxunicode + 1))))


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


@dataclasses.dataclass(frozen=True)
class SystemPrompt(Prompt):
    """Prompt format of Qwen3-VL-Embedding; picklable.

    An item's prefix is the instruction, in the system turn; its images and then its text, as it is
    but for markers, are the user's. The model's answer has begun, and what ends the sequence, and
    is pooled, is added by the tokenizer (`ending`).
    """

    opening: str = ""  # before the instruction; frames begin after it

    def ending(self) -> list[int]:
        """Ids that the tokenizer adds at the end of every prompt."""
        return added_ending(self.tokenizer) if self.special_tokens else []

    def turns(self, text: str, images: int) -> tuple[list[dict[str, Any]], str]:
        """Messages that a chat template makes such a prompt of, and the prompt."""
        messages, prompt = super().turns(text, images)
        system = {"role": "system", "content": [{"type": "text", "text": DEFAULT}]}
        return [system, *messages], self.opening + DEFAULT + prompt

    def _segments(self, item: Item) -> tuple[Segments, int]:
        text, markers = image_markers.without_markers(item.text, *self.media_tokens)
        between, after = self._frame(item)
        if not text + item.suffix and not item.media and not self.empty_places(item):
            text = NOTHING
        before = self.opening + closed(item.prefix) + between
        return Segments(before, text, item.suffix + after), max(0, markers - len(item.media))

    def image_frames(self) -> tuple[tuple[str, str], ...]:
        """Strings between an instruction and a text, and after that, by number of images."""
        return self.frames


def open_any_prompt(
    folder: pathlib.Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    image_token_id: int,
    vocab_size: int,
    style: Style,
    max_length: int,
    missing_images: MissingImages,
    clip_token_id: int | None = None,
    clip_place: str = "",
) -> Prompt:
    """Prompt of a checkpoint, of style "system", too; arguments as `open_prompt`.

    Raises:
      ValueError: as `open_prompt`, or the template does not write a system turn as it is.
    """
    chat = open_prompt(
        folder,
        tokenizer,
        image_token_id=image_token_id,
        vocab_size=vocab_size,
        style="chat" if style == "system" else style,
        max_length=max_length,
        missing_images=missing_images,
        clip_token_id=clip_token_id,
        clip_place=clip_place,
    )
    if style != "system":
        return chat

    def make(source: str) -> tuple[str, tuple[tuple[str, str], ...], ClipPlaces | None]:
        opening, frames = system_frames_of(tokenizer, source, chat.image_token)
        token = chat.clip_token
        places = clips_of(tokenizer, source, frames, token, after_system=True) if token else None
        return opening, frames, places

    opening, frames, clips = chat_templates.use(folder, make)
    prompt = SystemPrompt(
        **{field.name: getattr(chat, field.name) for field in dataclasses.fields(chat)}
    )
    return dataclasses.replace(
        prompt,
        style="system",
        frames=frames,
        clips=clips,
        special_tokens=adds_special_tokens(tokenizer, opening),
        opening=opening,
    )


def added_ending(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Ids that a tokenizer adds at the end of every text."""
    encoding = tokenizer.encode("a")
    last = max(i for i, special in enumerate(encoding.special_tokens_mask) if not special)
    return list(encoding.ids[last + 1 :])
