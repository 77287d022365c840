"""What belongs to a backbone's fingerprint: all that decides an embedding, and nothing else."""

import types

from unime_jax.backbones.io.fingerprint import fingerprint

COUNTED = (
    "config.json",
    "tokenizer.json",
    "preprocessor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "chat_template.jinja",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
)
OTHERS = ("README.md", "pytorch_model.bin", "modeling.py", "onnx/model.onnx", "1_Pooling/x.json")


def test_files_that_decide_an_embedding_count(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        for name in (*COUNTED, *OTHERS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    alone = fingerprint(types.SimpleNamespace(folder=base, adapter=None))
    assert alone.keys() == set(COUNTED) and list(alone) == sorted(alone)
    both = types.SimpleNamespace(folder=base, adapter=adapter)
    before = fingerprint(both)
    assert before == alone | {f"adapter/{name}": alone[name] for name in COUNTED}
    assert len(set(alone.values())) == len(COUNTED)
    for prefix, folder in (("", base), ("adapter/", adapter)):
        for name in (*COUNTED, *OTHERS):
            (folder / name).write_text(name[:-1] + "X")  # as long as before
            after = fingerprint(both)
            changed = {key for key in before if after[key] != before[key]}
            assert changed == ({prefix + name} if name in COUNTED else set()), name
            (folder / name).write_text(name)
