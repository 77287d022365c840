"""The tiny backbone folder: transformers loads it, and it renders the published prompt."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from data_pipelines.mini_mmeb import TINY
from data_pipelines.mini_mmeb.backbone import write_backbone

TEXTS = ["<|image_1|>\nFind a big red circle left of a blue square\n"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "backbone"
    write_backbone(path, iter(TEXTS), TINY)
    return path


def test_tokenizer_renders_the_exact_prompt(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {"type": "text", "text": "Find a red circle"}
    for content, image in (([text, {"type": "image"}], "<image>"), ([text], "")):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert rendered == (
            f"<|im_start|>user {image}\nFind a red circle<|im_end|><|im_start|>assistant\n"
        )
        ids = tokenizer(rendered)["input_ids"]
        assert tokenizer.decode(ids) == rendered
        assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == bool(image)

    # Frequent words are single tokens and any text round trips
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer.tokenize("Find a big red circle")) == 5
    assert len(tokenizer.tokenize("assistant\n")) == 2
    odd = "naïve Größe 漢字 \u200b 12'll"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd

    # Special tokens are those of the config
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_index
    assert tokenizer.convert_tokens_to_ids("<video>") == config.video_token_index
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert len(tokenizer) <= config.text_config.vocab_size <= TINY.vocabulary

    # Config has the sizes and the published form
    config = AutoConfig.from_pretrained(folder)
    assert config.text_config.num_key_value_heads == TINY.text.kv_heads
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert config.vision_config.model_type == "siglip_vision_model"
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (48, 12)
    raw = json.loads((folder / "config.json").read_text())
    assert (
        raw["text_config"]["rope_theta"] == 1e6 and raw["vision_config"]["vision_use_head"] is False
    )
    assert raw["vision_aspect_ratio"] == "anyres_max_9" and raw["projector_hidden_act"] == "gelu"

    # Processor cuts tiles
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for size, tiles in (((48, 48), 2), ((96, 48), 3), ((48, 96), 3)):
        image = Image.new("RGB", size, (255, 0, 0))
        pixels = np.asarray(processor(image, return_tensors="np")["pixel_values"])
        assert pixels.shape == (1, tiles, 3, 48, 48)
        assert pixels.max() == 1 and pixels.min() == -1

    # An existing folder is refused
    with pytest.raises(FileExistsError, match="remove it"):
        write_backbone(folder, TEXTS, TINY)
