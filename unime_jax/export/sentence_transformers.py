"""Files that let `sentence_transformers.SentenceTransformer` load an exported folder.

sentence-transformers words its inputs through a chat template. The one written here renders this
package's prompts and only ST uses it; the checkpoint's own stays for generation.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

MODULES = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)
# `chat_template_of` puts frames, markers and strip in front.
_TEMPLATE = """\
{%- set turn = namespace(text='', images=0) -%}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user'] -%}
{{ raise_exception('this model embeds one user turn, not a turn of ' + message['role']) }}
{%- endif -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}
{%- elif part['type'] == 'image' -%}{%- set turn.images = turn.images + 1 -%}
{%- else -%}{{ raise_exception('this model embeds text and images, not ' + part['type']) }}
{%- endif -%}{%- endfor -%}{%- endfor -%}
{%- for marker in markers -%}
{%- set turn.text = turn.text | replace(marker + '\\n', '') | replace(marker, '') -%}
{%- endfor -%}
{%- if turn.images >= frames | length -%}
{{ raise_exception('more images than this model takes: ' ~ turn.images) }}
{%- endif -%}
{{ frames[turn.images][0] + (turn.text | trim if strip else turn.text) + frames[turn.images][1] }}
"""


def write(
    folder: pathlib.Path,
    *,
    frames: Sequence[tuple[str, str]],
    markers: Sequence[str],
    strip: bool,
    dimension: int,
    max_length: int,
    prompts: Mapping[str, str],
) -> None:
    """Adds the layout of sentence-transformers 6.2 or newer to a folder that transformers loads.

    `SentenceTransformer(folder).encode` then takes a string, an image, or a dict of "text" and
    "image" (one, or a list), mixed in one call, and gives the last token's hidden state after the
    final norm, scaled to length one. An image alone is an image with the text "", and the order of
    a dict's keys does not matter. `encode(..., prompt_name=...)` writes the prompt directly before
    the text, inside the user turn, as if it were part of the text; there is no system turn.

    Text beyond `max_length` is cut. Of a row with images ST then cuts the frame's suffix as well
    (and raises ValueError if image tokens are lost), so such rows must fit.

    Args:
      folder: has config.json, tokenizer and processor files, weights.
      frames: what stands before and after the text, by number of images: frames[0] without one,
        an image token for each image in the others.
      markers: strings that are left out of a text, with the line end after them.
      strip: whether white space around the text is left out.
      dimension: of an embedding.
      max_length: most tokens of a row.
      prompts: by name; the names "query" and "document" are what encode_query and encode_document
        use.
    """
    hidden_state = {"method": "forward", "method_output_name": "last_hidden_state"}
    chat_template = chat_template_of(frames, markers, strip=strip)
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": x, "type": y} for i, (x, y) in enumerate(MODULES)
        ],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": hidden_state,
                "image": hidden_state,
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
            "processor_kwargs": {"model_max_length": max_length, "use_fast": False},
            "unpad_inputs": False,  # Qwen2-VL's positions need rows
        },
        "1_Pooling/config.json": {"embedding_dimension": dimension, "pooling_mode": "lasttoken"},
        "2_Normalize/config.json": {"module_input_name": "sentence_embedding"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def chat_template_of(
    frames: Sequence[tuple[str, str]], markers: Sequence[str], *, strip: bool
) -> str:
    """Jinja source that joins all text parts of all turns and puts them into the images' frame."""
    settings = {"frames": [list(x) for x in frames], "markers": list(markers), "strip": strip}
    # JSON's strings, lists and booleans are Jinja's, but for escaped pairs of surrogates.
    lines = [
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n"
        for name, value in settings.items()
    ]
    return "".join(lines) + _TEMPLATE
