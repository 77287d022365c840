"""A tiny LLaVE as its hub repositories are: original config, Qwen2 tokenizer, original names."""

import json
import pathlib
import re

import jax
import numpy as np
from safetensors.numpy import save_file

from unime_jax import backbones, paths
from unime_jax.backbones.io.names import table

TOKENIZER = pathlib.Path(__file__).parents[1] / "golden" / "llave" / "model" / "tokenizer.json"
ORIGINAL = (  # from LLaVA-OneVision's published names
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model."),
    (r"^vision_tower\.", "model.vision_tower.vision_tower."),
    (r"^multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^image_newline$", "model.image_newline"),
)
CONFIG = {
    "architectures": ["LlavaQwenForCausalLM"],
    "bos_token_id": 256,
    "eos_token_id": 258,
    "hidden_act": "silu",
    "hidden_size": 48,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(2x2)",
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "model_type": "llava_qwen",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 4096,
    "torch_dtype": "float32",
    "use_sliding_window": False,
    "vocab_size": 264,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-06,
}


def write_llava_qwen(folder: pathlib.Path, *, seed: int = 0, **changes) -> pathlib.Path:
    """Writes a whole checkpoint, `changes` made to its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "siglip_vision_config.json").write_text(json.dumps(TOWER))
    _write_tokenizer(folder)
    backbone = backbones.open_backbone(str(folder), max_length=512)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    random = np.random.default_rng(seed)
    tensors = {}
    for entry in table({path: x.shape for path, x in shapes.items()}, backbone.names):
        for name in entry.names:
            scale = np.sqrt(max(1, np.prod(entry.shape[1:])))
            values = random.normal(size=entry.shape) / scale + ("norm" in name)
            tensors[original(name)] = values.astype(np.float32)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random.normal(size=(264, 48)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def original(name: str) -> str:
    """LLaVE's name of a tensor of LLaVA-OneVision."""
    for pattern, replacement in ORIGINAL:
        name = re.sub(pattern, replacement, name)
    return name


def _write_tokenizer(folder: pathlib.Path) -> None:
    content = json.loads(TOKENIZER.read_text())
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    settings = {
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True} | flags for token, i in special.items()
        },
        "bos_token": None,
        "chat_template": "{{ messages[0]['content'] }}",
        "eos_token": "<|im_end|>",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps(special))
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
