"""`rank_pattern` and `alpha_pattern` of an adapter name whole names or their ends, as in PEFT."""

import json

import numpy as np
from peft.utils.other import get_pattern_key
from safetensors.numpy import save_file

from tests.tables import for_each
from unime_jax.backbones.io import merging
from unime_jax.backbones.io.names import AS_PUBLISHED, Names

MODULES = (
    "model.layers.0.attn.q_proj",
    "model.layers.1.attn.q_proj",
    "model.layers.10.attn.q_proj",
    "model.layers.1.attn.xq_proj",
    "model.layers.1.attn.q_proj_b",
    "model.layers.1.attn.proj",
    "q_proj",
)
NAMES = Names(((("", ""),)), (), (AS_PUBLISHED,), (), ("", ()))
PATTERNS = (
    {"q_proj": 5},
    {"proj": 5},
    {"q": 5, "layers": 6},
    {"proj|attn.q_proj": 5},
    {r"layers\.1\.attn\.q_proj": 5, "q_proj": 6},
    {"q_proj": 5, r"layers\.1\.attn\.q_proj": 6},
    {"layers.1.attn.q_proj": 5},
    {r".*\.1\..*": 5},
    {},
    None,
)


@for_each("patterns", PATTERNS)
@for_each("key", ["rank_pattern", "alpha_pattern"])
def test_patterns_are_matched_as_in_peft(tmp_path, key, patterns):
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4, "lora_alpha": 7}
    (tmp_path / merging.CONFIG).write_text(json.dumps(config | {key: patterns}))
    tensors = {
        f"{merging.PREFIX}{module}.lora_A.weight": np.ones((4, 2), np.float32) for module in MODULES
    }
    save_file(tensors, tmp_path / merging.WEIGHTS)
    deltas = merging.read(tmp_path, NAMES).deltas
    for module in MODULES:
        value = (patterns or {}).get(get_pattern_key(list(patterns or {}), module))
        rank = value if value and key == "rank_pattern" else 4
        alpha = value if value and key == "alpha_pattern" else 7
        delta = deltas[f"{module}.weight"]
        assert (delta.rank, delta.scale) == (rank, alpha / rank), module


def test_a_name_is_no_others_beginning_or_end():
    names = Names((), (), (), (r"lm_head\.weight", r"a|b"), ("", ()))
    unused = {"lm_head.weight", "a", "b"}
    for name in (*unused, "lm_head.weight_scale", "x.lm_head.weight", "ab", "xb", "lm_headXweight"):
        assert names.is_unused(name) is (name in unused), name
    assert not Names((), (), (), (), ("", ())).is_unused("")
