"""Files of an export: which are copied, and what those of sentence-transformers say."""

import json

import numpy as np

from tests.models.test_lora import decoder, with_adapters
from unime_jax import paths
from unime_jax.export import folder as hf_folder
from unime_jax.export import sentence_transformers as layout

CARRIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
)
LEFT_OUT = (
    "1_Pooling",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config_sentence_transformers.json",
    "merge.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "modeling.py",
    "modules.json",
    "pytorch_model.bin.index.json",
    "self_check.json",
    "self_check_0.png",
    "self_check_items.json",
    "sentence_bert_config.json",
)


def test_what_a_copy_has_of_a_checkpoint(tmp_path):
    """No weights, and nothing that is true of another folder alone."""
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    for name in (*CARRIED, *LEFT_OUT):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    hf_folder.copy_files(source, target)
    assert {file.name: file.read_text() for file in target.iterdir()} == {x: x for x in CARRIED}


def test_settings_of_sentence_transformers(tmp_path):
    layout.write(
        tmp_path,
        frames=[("<", ">")],
        markers=[],
        strip=True,
        dimension=24,
        max_length=140,
        prompts={"query": "find: "},
    )
    read = lambda name: json.loads((tmp_path / name).read_text())  # noqa: E731
    assert read("config_sentence_transformers.json") == {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "find: "},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    modules = read("modules.json")
    assert [module["idx"] for module in modules] == [0, 1, 2]
    assert [module["type"].rpartition(".")[2] for module in modules] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    assert read("1_Pooling/config.json") == {
        "embedding_dimension": 24,
        "pooling_mode": "lasttoken",
    }
    assert read("2_Normalize/config.json") == {"module_input_name": "sentence_embedding"}
    settings = read("sentence_bert_config.json")
    assert settings["processor_kwargs"] == {
        "model_max_length": 140,
        "truncation_side": "right",
        "use_fast": False,
    }
    assert settings["processing_kwargs"]["text"] == {"padding_side": "right"}
    assert settings["unpad_inputs"] is False
    assert settings["transformer_task"] == "feature-extraction"
    assert settings["module_output_name"] == "token_embeddings"
    hidden = {"method": "forward", "method_output_name": "last_hidden_state"}
    assert settings["modality_config"] == {
        "text": hidden,
        "image": hidden,
        "message": hidden | {"format": "structured"},
    }

    # What is merged has the names of a model without adapters
    plain = {name: leaf.shape for name, leaf in paths.split(decoder())[1].items()}
    model = with_adapters(dora=True, targets=((r".*\.q_proj", True), (".*", False)))
    merged = hf_folder.merged_parameters(*paths.split(model), np.dtype("float32"))
    assert {name: leaf.shape for name, leaf in merged.items()} == plain
    folded = {name for name, leaf in merged.items() if isinstance(leaf, hf_folder.Folded)}
    assert folded == {"layers.self_attn.q_proj.kernel"}
