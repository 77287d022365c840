"""The smoke tier, `pytest -m smoke`: a minute for what a change is likely to break first.

A file, or the beginning of a test's name in one. Those of `WITH_TORCH` import it, and are left out
where it is not installed.
"""

import importlib.util
import pathlib

ANYWHERE = (
    "tests/test_architecture.py",
    "tests/test_config_goldens.py",
    "tests/test_smoke.py",
    "tests/data/test_mixture.py",
    "tests/data/test_packing.py",
    "tests/evaluation/test_ranking.py",
    "tests/evaluation/test_scores.py",
    "tests/jobs/test_command.py",
    "tests/jobs/test_preflight.py",
    "tests/losses/test_infonce_on_meshes.py",
    "tests/operations/test_recipes.py::test_a_name_is_the_file_of_this_clone",
    "tests/planning/test_chips.py",
    "tests/planning/test_costs.py",
    "tests/serve/test_app.py",
    "tests/training/test_metrics.py",
    "tests/training/test_step.py::test_loss_and_gradient_on_a_mesh",
)
WITH_TORCH = (
    "tests/backbones/test_bert.py::test_minilm_is_sentence_transformers",
    "tests/models/test_llava_qwen.py::test_recorded_embedding_of_an_image_file",
    "tests/models/test_nv_embed.py::test_attention_to_so_many_keys",
    "tests/models/test_parity.py::test_whole_model_on_odd_image_sizes",
    "tests/models/test_phi3_v.py::test_recorded_hidden_states_and_embeddings",
    "tests/models/test_qwen2_vl.py::test_recorded_embeddings",
)
TESTS = ANYWHERE + (WITH_TORCH if importlib.util.find_spec("torch") else ())

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_FILES = {_ROOT / name.partition("::")[0] for name in TESTS}


def has_file(path: pathlib.Path) -> bool:
    """Whether a file of tests, or a folder of them, has any of the tier."""
    return path in _FILES or path.is_dir() and any(file.is_relative_to(path) for file in _FILES)


def has_test(node_id: str) -> bool:
    return node_id.startswith(TESTS)
