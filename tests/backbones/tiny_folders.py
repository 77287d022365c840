"""Tiny Hugging Face folders of LLaVA-OneVision's form: tokenizer, image processor, config."""

import json
import pathlib

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

# The template published with llava-onevision-qwen2-*-ov-hf, shortened to what a user turn needs.
HUB_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# What a tokenizer_config.json of such a checkpoint still holds: the language model's own.
QWEN2_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TEXTS = ("Represent the given image for classification", "a red circle left of a blue square") * 3


def pinpoints(tile: int, most: int) -> list[list[int]]:
    """All canvases of up to most x most tiles, in the checkpoints' order."""
    sizes = [tile * (i + 1) for i in range(most)]
    return [[height, width] for height in sizes for width in sizes]


NARROW = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)


def tiny_config(
    *,
    tile: int,
    patch: int,
    grid: int,
    max_tiles: int = 9,
    vision: dict[str, int] = NARROW,
    text: dict[str, int] = NARROW | {"num_key_value_heads": 1},
) -> LlavaOnevisionConfig:
    """A configuration of a model of a few thousand parameters."""
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=tile, patch_size=patch, vision_use_head=False, **vision
        ),
        text_config=Qwen2Config(**({"vocab_size": 400} | text)),
        image_grid_pinpoints=pinpoints(tile, grid),
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
    )


def write_folder(
    folder: pathlib.Path,
    *,
    tile: int = 28,
    patch: int = 7,
    grid: int = 2,
    max_tiles: int = 9,
    template: str = HUB_TEMPLATE,
    vision: dict[str, int] = NARROW,
    text: dict[str, int] = NARROW | {"num_key_value_heads": 1},
) -> pathlib.Path:
    """Writes the files a preprocessor reads and returns `folder`; there are no weights."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", chat_template=QWEN2_TEMPLATE
    )
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    LlavaOnevisionImageProcessorPil(
        size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints(tile, grid),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    config = tiny_config(
        tile=tile, patch=patch, grid=grid, max_tiles=max_tiles, vision=vision, text=text
    )
    config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    config.video_token_index = tokenizer.convert_tokens_to_ids("<video>")
    config.save_pretrained(folder)
    return folder
