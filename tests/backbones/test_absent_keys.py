"""Values of keys that a folder leaves out, where this package reads its files by itself."""

import json
import types

import pytest
from transformers import (
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_next import image_processing_pil_llava_next as llava_next_pil
from transformers.models.llava_onevision import image_processing_pil_llava_onevision as onevision
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen2_vl_pil

from tests.tables import for_each
from unime_jax.backbones.io import hf_config
from unime_jax.backbones.llava import llava_config, llava_next, llava_qwen_config
from unime_jax.backbones.phi3_v import phi3_v
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.qwen2_vl import processors as qwen2_vl
from unime_jax.backbones.texts import nv_embed
from unime_jax.models.latent_attention import LatentAttentionConfig

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
PHI3_V = {
    "embd_layer": phi3_v.EMBEDDING,
    "img_processor": {"name": "clip_vision_model", "image_dim_out": 1024},
}


def decoder(text, max_length=16):
    types = (text.model_type,)
    return hf_config.decoder_config(text, model_types=types, max_length=max_length, final_norm=True)


def test_a_decoder_takes_its_numbers_and_refuses_what_it_lacks():
    mistral = MistralConfig(**SIZES, sliding_window=64)
    decoder(mistral, 64)
    with pytest.raises(ValueError, match="sliding_window is 64 tokens, and rows may have 65"):
        decoder(mistral, 65)
    decoder(MistralConfig(**SIZES, sliding_window=None), 65)
    decoder(Qwen2Config(**SIZES, sliding_window=64, use_sliding_window=False), 65)
    switched_on = Qwen2Config(
        **SIZES, sliding_window=64, use_sliding_window=True, max_window_layers=0
    )
    with pytest.raises(ValueError, match="sliding_window is 64 tokens, and rows may have 65"):
        decoder(switched_on, 65)

    # A decoder takes its numbers from the configuration. Unlike any default; and the default,
    # where nothing is said, is transformers'.
    for kind in [LlamaConfig, MistralConfig, Qwen2Config, Phi3Config]:
        rope = {"rope_type": "default", "rope_theta": 12345.0}
        given = kind(**SIZES, rms_norm_eps=3e-4, rope_parameters=rope, pad_token_id=0)
        found, silent = decoder(given), decoder(kind(**SIZES, pad_token_id=0))
        assert (found.rms_norm_eps, found.rope_theta) == (3e-4, 12345.0)
        assert (found.num_layers, found.num_heads, found.num_kv_heads, found.head_dim) == (
            3,
            4,
            2,
            16,
        )
        assert (found.vocab_size, found.hidden_size, found.intermediate_size) == (100, 64, 32)
        assert found.qkv_bias is silent.qkv_bias is (kind is Qwen2Config)
        epsilon = {LlamaConfig: 1e-6, MistralConfig: 1e-6, Qwen2Config: 1e-6, Phi3Config: 1e-5}
        assert (silent.rms_norm_eps, silent.rope_theta) == (epsilon[kind], 10000.0)
        assert silent.causal and silent.long_rope is None

    # Biases that a decoder lacks are refused
    for key in ["mlp_bias", "attention_bias"]:
        with pytest.raises(ValueError, match=f"text_config.{key} is True"):
            decoder(LlamaConfig(**SIZES, **{key: True}))


@for_each(
    "settings, processor",
    [
        (llava_next.DEFAULTS, llava_next_pil.LlavaNextImageProcessorPil),
        (llava_config.DEFAULTS, onevision.LlavaOnevisionImageProcessorPil),
        (qwen2_vl.DEFAULTS, qwen2_vl_pil.Qwen2VLImageProcessorPil),
    ],
)
def test_image_processors_have_the_defaults_of_transformers_classes(settings, processor):
    theirs = json.loads(processor().to_json_string())
    for key, value in settings.items():
        expected = theirs.get(key) or False  # None: not done
        assert value == (tuple(expected) if isinstance(value, tuple) else expected), key
    if processor is qwen2_vl_pil.Qwen2VLImageProcessorPil:
        assert image_processor_config.area({}) == theirs["size"]


def test_families_take_what_is_missing_from_the_published_models(tmp_path):
    # Phi-3-V is the published one.
    text = phi3_v.text_config({"hidden_size": 64, "num_attention_heads": 4})
    assert text.rope_parameters["rope_type"] == "default"
    assert text.rope_parameters["rope_theta"] == 10000.0
    assert text.original_max_position_embeddings == 4096 and text.rms_norm_eps == 1e-5
    given = phi3_v.text_config({"rms_norm_eps": 3e-4, "rope_theta": 5.0, "vocab_size": 7})
    assert (given.rms_norm_eps, given.rope_parameters["rope_theta"], given.vocab_size) == (
        3e-4,
        5.0,
        7,
    )
    tower, layers = phi3_v.tower_config(tmp_path, PHI3_V)
    assert (tower.layer_norm_eps, tower.hidden_act, tower.num_heads) == (1e-5, "quick_gelu", 16)
    assert (tower.num_layers, layers, tower.image_size, tower.patch_size) == (23, 24, 336, 14)
    assert phi3_v.DEFAULTS["num_crops"] == 1
    for key, value in (("layer_idx", -1), ("type_feature", "cls_patch"), ("model_name", "x/y")):
        other = PHI3_V["img_processor"] | {key: value}
        with pytest.raises(ValueError, match=f"img_processor.{key} is {value!r}"):
            phi3_v.tower_config(tmp_path, PHI3_V | {"img_processor": other})

    # LLaVA-Qwen takes what is missing from SigLIP and Qwen2.
    (tmp_path := tmp_path / "next").mkdir()
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    (tmp_path / llava_qwen_config.TOWER_FILE).write_text(json.dumps(sizes))
    own = {
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[28, 56]],
        "mm_hidden_size": 64,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "x",
        "vocab_size": 100,
    }
    config = llava_qwen_config.convert_config(tmp_path, own, 99, 98)
    vision, published = config.vision_config, SiglipVisionConfig()
    assert vision.layer_norm_eps == published.layer_norm_eps
    assert vision.hidden_act == published.hidden_act
    assert vision.num_hidden_layers == 2 and config.tie_word_embeddings is False
    assert config.image_grid_pinpoints == [[56, 28]]
    text = Qwen2Config()
    assert config.text_config.rms_norm_eps == text.rms_norm_eps
    assert config.text_config.rope_parameters == text.rope_parameters
    tied = llava_qwen_config.convert_config(tmp_path, own | {"tie_word_embeddings": True}, 99, 98)
    assert tied.tie_word_embeddings is True

    # NV-Embed takes what is missing from the published model.
    found = nv_embed._latent_attention(types.SimpleNamespace(), 4096)
    expected = LatentAttentionConfig(hidden_size=4096, num_latents=512, num_heads=8, head_dim=4096)
    assert found == expected
