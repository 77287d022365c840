"""Prompts of checkpoint folders: their tokenizers and chat templates, opened and checked."""

import pathlib
from typing import TYPE_CHECKING, Literal

from unime_jax.backbones.preprocessing import chat_templates
from unime_jax.backbones.preprocessing.chat_frames import clips_of, frames_of
from unime_jax.backbones.preprocessing.clip_places import ClipPlaces
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.data.settings import MissingImages, Style

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_tokenizer(
    folder: pathlib.Path,
    kind: Literal["AutoTokenizer", "PreTrainedTokenizerFast"] = "AutoTokenizer",
) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer, by a class of transformers.

    Raises:
      ValueError: the folder has no tokenizer.json; without it transformers may make up another one;
        or its tokenizer is code of its own.
    """
    if not (folder / "tokenizer.json").exists():
        raise ValueError(
            f"{folder} has no tokenizer.json: copy the one of the checkpoint it was made from."
        )
    import transformers  # takes a second, and torch with it where that is installed

    # Left open, it would ask on the terminal whether a repository's code may run.
    opener = getattr(transformers, kind)
    tokenizer: PreTrainedTokenizerBase = opener.from_pretrained(folder, trust_remote_code=False)
    return tokenizer


def open_prompt(
    folder: pathlib.Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    image_token_id: int,
    vocab_size: int,
    style: Style,
    max_length: int,
    missing_images: MissingImages = "strip",
    clip_token_id: int | None = None,
    clip_place: str = "",
    template: str | None = None,
) -> Prompt:
    """Prompt of a checkpoint, from its tokenizer and chat template.

    `template` is Jinja source that takes the place of the folder's own. `vocab_size` is the number
    of rows of the model's embedding. `clip_token_id` and `clip_place` are as of `Prompt`; without
    such a token in the tokenizer there are no clips.

    Raises:
      ValueError: the files contradict each other, there is no usable chat template, or the model
        has no embedding of tokens in ordinary use.
    """
    if style == "system":
        raise ValueError(
            f'{folder}: processing.prompt is "system", an instruction in a turn of its own, which'
            ' is Qwen3-VL\'s; this family has "chat", "verbatim" and "raw"'
        )
    added = tokenizer.get_added_vocab()
    image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
    if image_token not in added:
        raise ValueError(
            f"{folder}: the image token of config.json is {image_token_id}, which is"
            f" {image_token!r} in tokenizer.json and not an added (special) token"
        )
    clip_token = next((token for token, i in added.items() if i == clip_token_id), "")
    frames: tuple[tuple[str, str], ...] = ()
    clips = None
    special_tokens = True
    if style != "raw":

        def make(source: str) -> tuple[tuple[tuple[str, str], ...], ClipPlaces | None]:
            frames = frames_of(tokenizer, source, image_token)
            return frames, clips_of(tokenizer, source, frames, clip_token) if clip_token else None

        frames, clips = make(template) if template else chat_templates.use(folder, make)
        special_tokens = adds_special_tokens(tokenizer, frames[0][0])
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
    backend.no_padding()
    prompt = Prompt(
        tokenizer=backend,
        style=style,
        frames=frames,
        image_token=image_token,
        image_token_id=image_token_id,
        special_tokens=special_tokens,
        vocab_size=vocab_size,
        max_length=max_length,
        missing_images=missing_images,
        clip_token=clip_token,
        clip_token_id=clip_token_id if clip_token else None,
        clip_place=clip_place,
        clips=clips,
    )
    prompt.check_tokenizer(folder)
    return prompt


def adds_special_tokens(tokenizer: "PreTrainedTokenizerBase", beginning: str) -> bool:
    """Whether transformers adds the tokenizer's special tokens to a prompt of a chat template.

    A BOS that the template writes is not added once more.
    """
    bos = tokenizer.bos_token
    return bos is None or not beginning.startswith(bos)
