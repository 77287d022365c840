"""Files that let `sentence_transformers.SentenceTransformer` load an exported folder.

sentence-transformers words its inputs through a chat template. The one written here renders this
package's prompts and only ST uses it; the checkpoint's own stays for generation.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

MODULES = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)
PROMPTS = "config_sentence_transformers.json"
NAMES_OF_FILES = (
    "A string that names a file of an image or a video is what the file shows there, and a text"
    ' here; `{"image": name}`, `{"video": name}` and `{"text": name}` are the same in both.'
)
# Of dual encoders, where neither library knows items with a text and an image.
SEPARATE = (
    "There a call has texts alone, or images alone. Here it may have both, and an item with a text"
    " and an image is the sum of the two vectors, each of length one, scaled to length one; several"
    " images of an item are first added alike.",
    "Image markers, `<|image_1|>` and `<|video_1|>`, are left out of a text here, and are text"
    " there.",
    NAMES_OF_FILES,
)
# `chat_template_of` puts its arguments before it. Each round splits what is left of the text at its
# markers, as `image_markers.without_markers` does; the first one keeps the places of the turn's
# images and clips, if they have places in the text.
TEMPLATE = pathlib.Path(__file__).with_name("embedding_turn.j2")


class Wording(TypedDict):
    """Arguments of `write` that decide the text of an input."""

    frames: Sequence[tuple[str, str]]
    markers: Sequence[str]
    strip: bool
    image_token: str | None
    in_front: bool
    clips: "ClipTurn | None"
    system: "SystemTurn | None"


class ClipTurn(TypedDict):
    """Words of clips, as `clip_places.ClipPlaces` has them; all but the token are of frames."""

    token: str
    unit: str  # what a clip adds to a frame
    start: int  # characters of a frame before it, without images
    images_first: bool
    mixed: bool  # whether a turn may have clips and images


class SystemTurn(TypedDict):
    """Words of a system turn with an instruction; `opening` goes before it, and frames after."""

    opening: str
    default: str  # instruction where there is none
    nothing: str  # text of an input without text and images
    punctuation: str  # characters after which no full stop is put


def write(
    folder: pathlib.Path,
    *,
    frames: Sequence[tuple[str, str]],
    markers: Sequence[str],
    strip: bool,
    image_token: str | None = None,
    in_front: bool = False,
    clips: ClipTurn | None = None,
    system: SystemTurn | None = None,
    dimension: int,
    max_length: int,
    prompts: Mapping[str, str],
) -> None:
    """Adds the layout of sentence-transformers 6.2 or newer to a folder that transformers loads.

    `SentenceTransformer(folder).encode` then takes a string, an image, or a dict of "text" and
    "image" (one, or a list), mixed in one call, and gives the last token's hidden state after the
    final norm, scaled to length one. An image alone is an image with the text "", and the order of
    a dict's keys does not matter. With `clips` it takes videos, too ("video").
    `encode(..., prompt_name=...)` writes the prompt directly before the text, inside the user turn,
    as if it were part of the text; with `system` it is the system turn's text.

    A row beyond `max_length` loses the end of its text, as in `Prompt`, with two exceptions that
    only code in the folder could avoid: of a row with images ST cuts the frame's suffix, too (and
    raises ValueError if image tokens are lost); and without a suffix it cuts the last token of the
    text, which `Prompt` keeps. `differences` says so to users.

    Args:
      folder: has config.json, tokenizer and processor files, weights.
      frames: strings before and after the text, by number of images: frames[0] without an image,
        the others with an image token for each image.
      markers: strings that are left out of a text, with the line end after them, as are the
        numbered ones of `image_markers`.
      strip: whether white space around the text is left out.
      image_token: written where the text has markers, for as many as there are images, and on
        lines in front for the others; only frames[0] is then used. None: images stand in frames.
      in_front: whether the image of a text with a single one is moved to its front; needs an
        `image_token`.
      clips: the words of clips; None: the model takes none.
      system: of models that have their instruction in a system turn; None: there is no such turn.
      dimension: of an embedding.
      max_length: most tokens of a row.
      prompts: by name; the names "query" and "document" are what encode_query and encode_document
        use.
    """
    hidden_state = {"method": "forward", "method_output_name": "last_hidden_state"}
    chat_template = chat_template_of(
        frames,
        markers,
        strip=strip,
        image_token=image_token,
        in_front=in_front,
        clips=clips,
        system=system,
    )
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": x, "type": y} for i, (x, y) in enumerate(MODULES)
        ],
        PROMPTS: _prompts(prompts),
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": hidden_state,
                "image": hidden_state,
                **({"video": hidden_state} if clips else {}),
                "message": hidden_state | {"format": "structured"},
            },
            "module_output_name": "token_embeddings",
            "processing_kwargs": {
                "chat_template": {"chat_template": chat_template},
                # Positions count from the row's start: with padding there, a low precision would
                # make an embedding depend on its batch.
                "text": {"padding_side": "right"},
            },
            # Pixels as Pillow resizes them. transformers' new word for it, backend="pil", reaches
            # the video processor, too, which has no such backend.
            "processor_kwargs": {
                "model_max_length": max_length,
                "truncation_side": "right",  # whatever the tokenizer's own files say
                "use_fast": False,
            },
            "unpad_inputs": False,  # Qwen2-VL's positions need rows
        },
        "1_Pooling/config.json": {"embedding_dimension": dimension, "pooling_mode": "lasttoken"},
        "2_Normalize/config.json": {"module_input_name": "sentence_embedding"},
    }
    _write(folder, files)


def _prompts(prompts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "prompts": dict(prompts),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }


def _write(folder: pathlib.Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def write_separate(
    folder: pathlib.Path,
    *,
    max_length: int,
    padded: bool,
    image: Mapping[str, Any],
    prompts: Mapping[str, str],
) -> None:
    """Adds the layout of sentence-transformers 6.2 or newer to a folder of CLIP or SigLIP.

    `SentenceTransformer(folder).encode` then takes texts, or images, but no item with both.

    Args:
      folder: has config.json, tokenizer and processor files, weights.
      max_length: most tokens of a text.
      padded: whether every text is padded to that.
      image: what transformers' processor must be told of images in a call.
      prompts: by name, as in `write`.
    """
    path, kind = MODULES[-1]
    path = path.replace("2", "1")
    modules = [MODULES[0], (path, kind)]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": x, "type": y} for i, (x, y) in enumerate(modules)
        ],
        PROMPTS: _prompts(prompts),
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"}
                for name in ("text", "image")
            },
            "module_output_name": "sentence_embedding",
            "processing_kwargs": {
                "text": {
                    "padding": "max_length" if padded else True,
                    "max_length": max_length,
                    "truncation": True,
                },
                "image": dict(image),
            },
            "processor_kwargs": {"model_max_length": max_length, "use_fast": False},
            "unpad_inputs": False,
        },
        f"{path}/config.json": {"module_input_name": "sentence_embedding"},
    }
    _write(folder, files)


def differences(max_length: int, *, suffix: bool) -> tuple[str, ...]:
    """Differences of sentence-transformers from `Embedder` with a folder, as sentences for users.

    `suffix` says whether the frame writes something after the text.
    """
    which = "with an image " if suffix else ""
    return (
        f"A row {which}of more than {max_length} tokens is cut at its end there, template and last"
        " token included; `Embedder` cuts inside the text, as in training. Shorten such texts, or"
        " have neither cut: `Embedder.from_pretrained(..., max_length=N)`, and"
        ' `encode(..., processing_kwargs={"text": {"truncation": False}})`.',
        NAMES_OF_FILES,
    )


def chat_template_of(
    frames: Sequence[tuple[str, str]],
    markers: Sequence[str],
    *,
    strip: bool,
    image_token: str | None = None,
    in_front: bool = False,
    clips: ClipTurn | None = None,
    system: SystemTurn | None = None,
) -> str:
    """Jinja source of the prompt of all turns and their images; arguments as in `write`."""
    settings = {
        "frames": [list(x) for x in frames],
        "markers": list(markers),
        "strip": strip,
        "image_token": image_token or "",
        "in_front": in_front,
        "clips": clips or False,
        "system": system or False,
    }
    # JSON's strings, lists and booleans are Jinja's, but for escaped pairs of surrogates.
    lines = [
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n"
        for name, value in settings.items()
    ]
    return "".join(lines) + TEMPLATE.read_text("utf-8")
