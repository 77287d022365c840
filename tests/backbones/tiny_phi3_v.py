"""A tiny Hugging Face folder of Phi-3.5-Vision's form, as that checkpoint lies on the hub."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from tests.backbones.tiny_families import CLIP_MEAN, CLIP_STD, llama_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "phi3_v"
# Published with Phi-3.5-vision-instruct: a turn's content is a string.
TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content']"
    " + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] !="
    " 'assistant' %}{{- '<|assistant|>\n' -}}{% endif %}"
)
SPECIAL = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
TEXT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=448,
)
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
ROPE = dict(
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
    rope_scaling={
        "type": "su",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.5, 3.5, 4.5],
    },
)


def write_phi3_v(
    folder: pathlib.Path,
    *,
    tile: int = 28,
    patch: int = 7,
    crops: int = 4,
    vision: Mapping[str, Any] | None = VISION,
    text: Mapping[str, Any] = TEXT | ROPE,
) -> pathlib.Path:
    """Writes the files that a Phi-3.5-Vision has beside its weights.

    Args:
      folder: is made if it is not there.
      tile: pixels along a side of a tile.
      patch: pixels along a side of a patch.
      crops: num_crops of its image processor.
      vision: sizes of its tower; None: those of the published one, which no file says.
      text: keys of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = llama_tokenizer()
    backend.add_special_tokens([AddedToken(x, special=True, rstrip=True) for x in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "architectures": ["Phi3VForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_phi3_v.Phi3VConfig",
            "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
        },
        "model_type": "phi3_v",
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        "img_processor": {
            "image_dim_out": (vision or {"hidden_size": 1024})["hidden_size"],
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": 144,
        },
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    write_json(folder, "config.json", config | dict(text))
    if vision is not None:
        sizes = {"image_size": tile, "patch_size": patch} | dict(vision)
        write_json(folder, "clip_vision_config.json", sizes)
    write_json(
        folder,
        "preprocessor_config.json",
        {
            "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
            "image_processor_type": "Phi3VImageProcessor",
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "num_crops": crops,
            "num_img_tokens": 144,
        },
    )
    _write_tokenizer_config(folder, "LlamaTokenizer")
    return folder


def write_golden(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """The recorded model's folder with the recordings' tokenizer; `changes` go to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (GOLDEN / "model").glob("*.*"):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder, "config.json", config)
    # Byte-level BPE's letters: printable bytes stand for themselves, the others come after.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    of_byte = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
    assert of_byte.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {x: 3 + b for x, b in of_byte.items()}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    mean_and_std = json.loads((GOLDEN / "processor" / "pixels.json").read_text())
    write_json(
        folder,
        "preprocessor_config.json",
        {key: mean_and_std[key] for key in ("image_mean", "image_std")},
    )
    _write_tokenizer_config(folder, "PreTrainedTokenizerFast")
    return folder


def write_weights(folder: pathlib.Path, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a folder from `write_phi3_v`, as the hub's files name and shape them."""
    config = json.loads((folder / "config.json").read_text())
    tower = json.loads((folder / "clip_vision_config.json").read_text())
    d, hidden, vocabulary = (config[x] for x in ("hidden_size", "intermediate_size", "vocab_size"))
    head = d // config["num_attention_heads"]
    qkv = d + 2 * head * config["num_key_value_heads"]
    c, mlp, patch = (tower[x] for x in ("hidden_size", "intermediate_size", "patch_size"))
    embedding = "model.vision_embed_tokens"
    clip = f"{embedding}.img_processor.vision_model"
    shapes = {
        "lm_head.weight": (vocabulary, d),
        "model.embed_tokens.weight": (vocabulary, d),
        "model.norm.weight": (d,),
        f"{embedding}.glb_GN": (1, 1, 4 * c),
        f"{embedding}.sub_GN": (1, 1, 1, 4 * c),
        f"{embedding}.img_projection.0.weight": (d, 4 * c),
        f"{embedding}.img_projection.0.bias": (d,),
        f"{embedding}.img_projection.2.weight": (d, d),
        f"{embedding}.img_projection.2.bias": (d,),
        f"{clip}.embeddings.class_embedding": (c,),
        f"{clip}.embeddings.patch_embedding.weight": (c, 3, patch, patch),
        f"{clip}.embeddings.position_embedding.weight": (
            (tower["image_size"] // patch) ** 2 + 1,
            c,
        ),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{clip}.{norm}.weight": (c,), f"{clip}.{norm}.bias": (c,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (d,),
            f"{layer}.post_attention_layernorm.weight": (d,),
            f"{layer}.self_attn.qkv_proj.weight": (qkv, d),
            f"{layer}.self_attn.o_proj.weight": (d, d),
            f"{layer}.mlp.gate_up_proj.weight": (2 * hidden, d),
            f"{layer}.mlp.down_proj.weight": (d, hidden),
        }
    for i in range(tower["num_hidden_layers"]):
        layer = f"{clip}.encoder.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (c,), f"{layer}.{norm}.bias": (c,)}
        for x in ("q", "k", "v", "out"):
            shapes |= {
                f"{layer}.self_attn.{x}_proj.weight": (c, c),
                f"{layer}.self_attn.{x}_proj.bias": (c,),
            }
        shapes |= {f"{layer}.mlp.fc1.weight": (mlp, c), f"{layer}.mlp.fc1.bias": (mlp,)}
        shapes |= {f"{layer}.mlp.fc2.weight": (c, mlp), f"{layer}.mlp.fc2.bias": (c,)}
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        if "norm" in name and name.endswith("weight"):
            value += 1
        tensors[name] = value.astype(np.float32)
    tensors[f"{embedding}.wte.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def _write_tokenizer_config(folder: pathlib.Path, tokenizer_class: str) -> None:
    content = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "legacy": False,
        "padding_side": "right",
        "model_max_length": 131072,
        "chat_template": TEMPLATE,
    }
    write_json(folder, "tokenizer_config.json", content)


def write_json(folder: pathlib.Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")
