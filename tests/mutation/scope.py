"""The modules that are mutated, by package, and the tests that cover each of them."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = {
    "losses": ("unime_jax/losses/*.py",),
    "step": (
        "unime_jax/training/gradcache.py",
        "unime_jax/training/objectives.py",
        "unime_jax/training/optimizer.py",
        "unime_jax/training/state.py",
        "unime_jax/training/step.py",
        "unime_jax/training/step_metrics.py",
    ),
    "data": ("unime_jax/data/**/*.py",),
    "checkpoint": (
        "unime_jax/training/checkpoint*.py",
        "unime_jax/training/checksums.py",
        "unime_jax/training/damaged_checkpoints.py",
        "unime_jax/training/resume.py",
    ),
    "backbones": ("unime_jax/backbones/**/*.py",),
    "models": ("unime_jax/models/*.py",),
    "evaluation": ("unime_jax/evaluation/**/*.py",),
    "export": ("unime_jax/export/*.py",),
}
# Pages for people: most of their numbers are places on paper.
LEFT_OUT = (
    "unime_jax/evaluation/report/figures.py",
    "unime_jax/evaluation/report/gallery.py",
    "unime_jax/evaluation/report/page.py",
    "unime_jax/evaluation/report/scores.py",
    "unime_jax/evaluation/side_by_side/page.py",
    "unime_jax/evaluation/side_by_side/examples.py",
)
# How a module's path begins -> its tests; the longest beginning counts. In the order in which they
# run: fast ones that are about the module first, for a mutant is given up at the first failure.
COVERED_BY = {
    "unime_jax/losses/": ("tests/losses/test_*.py", "tests/training/test_objectives*.py"),
    "unime_jax/training/": (
        "tests/training/test_objectives*.py",
        "tests/training/test_finite*.py",
        "tests/training/test_step*.py",
        "tests/training/test_*.py",
    ),
    "unime_jax/training/step_metrics": (
        "tests/training/test_step*.py",
        "tests/training/test_*.py",
        "tests/jobs/test_multihost*.py",
        "tests/multihost/test_*.py",
    ),
    "unime_jax/training/c": ("tests/training/test_*check*.py", "tests/jobs/test_interruptions*.py"),
    "unime_jax/training/damaged": (
        "tests/training/test_*check*.py",
        "tests/jobs/test_interruptions*.py",
    ),
    "unime_jax/training/optimizer": (
        "tests/training/test_optimizer*.py",
        "tests/training/test_step*.py",
    ),
    "unime_jax/training/resume": (
        "tests/jobs/test_preflight*.py",
        "tests/**/test_resume*.py",
        "tests/jobs/test_damaged_state*.py",
        "tests/jobs/test_multihost*.py",
    ),
    "unime_jax/training/state": (
        "tests/training/test_state*.py",
        "tests/test_sharding*.py",
        "tests/training/test_step*.py",
    ),
    "unime_jax/data/": ("tests/data/**/test_*.py", "tests/test_embedder*.py"),
    "unime_jax/data/bucket_filling": (
        "tests/data/**/test_*.py",
        "tests/backbones/test_token_ids*.py",
        "tests/test_embedder*.py",
    ),
    "unime_jax/data/embedding_store": (
        "tests/data/test_embedding_store*.py",
        "tests/jobs/**/test_embed*.py",
    ),
    "unime_jax/data/teacher": ("tests/data/**/test_*.py", "tests/jobs/test_distillation*.py"),
    "unime_jax/backbones/": ("tests/backbones/test_*.py",),
    "unime_jax/backbones/__init__": (
        "tests/backbones/test_*.py",
        "tests/test_files_in_buckets*.py",
    ),
    "unime_jax/backbones/io/model_folders": (
        "tests/backbones/test_*.py",
        "tests/test_files_in_buckets*.py",
    ),
    "unime_jax/backbones/io/weights": (
        "tests/backbones/test_*.py",
        "tests/jobs/test_multihost*.py",
    ),
    "unime_jax/backbones/llava/": (
        "tests/backbones/test_llava*.py",
        "tests/backbones/test_anyres*.py",
        "tests/models/test_llava*.py",
        "tests/models/test_parity*.py",
        "tests/backbones/test_*.py",
        "tests/jobs/test_llava_qwen*.py",
    ),
    "unime_jax/backbones/phi3_v/": (
        "tests/backbones/test_phi3_v*.py",
        "tests/models/test_phi3_v*.py",
        "tests/backbones/test_*.py",
    ),
    "unime_jax/backbones/qwen2_vl/": (
        "tests/backbones/test_dynamic_resolution*.py",
        "tests/backbones/test_qwen2_vl*.py",
        "tests/models/test_qwen2_vl*.py",
        "tests/backbones/test_*.py",
    ),
    "unime_jax/backbones/qwen2_5_vl/": (
        "tests/backbones/test_qwen2_5_vl*.py",
        "tests/models/test_qwen2_5_vl*.py",
        "tests/backbones/test_*.py",
    ),
    "unime_jax/backbones/texts/": (
        "tests/backbones/test_bert*.py",
        "tests/backbones/test_nv_embed*.py",
        "tests/models/test_nv_embed*.py",
        "tests/backbones/test_*.py",
    ),
    "unime_jax/models/": ("tests/models/test_*.py",),
    "unime_jax/models/dual_encoder": ("tests/backbones/test_dual_encoder*.py",),
    "unime_jax/models/naflex": ("tests/backbones/test_dual_encoder*.py",),
    "unime_jax/models/bert": ("tests/backbones/test_bert*.py",),
    "unime_jax/models/forward": (
        "tests/models/test_*.py",
        "tests/training/test_finite*.py",
        "tests/inference/test_encode*.py",
    ),
    "unime_jax/evaluation/": (
        "tests/evaluation/**/test_*.py",
        "tests/jobs/test_evaluate*.py",
        "tests/jobs/test_damaged_state*.py",
    ),
    "unime_jax/evaluation/mining/": (
        "tests/evaluation/mining/test_*.py",
        "tests/test_index*.py",
        "tests/jobs/test_mine*.py",
    ),
    "unime_jax/evaluation/benchmarks/composition": (
        "tests/evaluation/tasks/test_composition*.py",
        "tests/data_pipelines/benchmarks/test_composition*.py",
        "tests/evaluation/**/test_*.py",
    ),
    "unime_jax/export/transformers_check": (
        "tests/export/test_transformers_check*.py",
        "tests/backbones/test_dual_encoder*.py",
        "tests/export/test_*.py",
    ),
    "unime_jax/export/": (
        "tests/export/test_*.py",
        "tests/backbones/test_st_folder*.py",
        "tests/backbones/test_bert*.py",
        "tests/jobs/test_conflicting_files*.py",
        "tests/jobs/test_outcomes*.py",
    ),
}


def modules(package: str) -> list[str]:
    """Sorted paths below the root of the repository."""
    inside = _matching(PACKAGES[package]) - _matching(LEFT_OUT)
    return sorted(str(path.relative_to(ROOT)) for path in inside)


def tests_of(module: str) -> list[str]:
    """Files of tests in the order of running: the one named like the module, then as in the table.

    Raises:
      ValueError: the table has no entry for the module.
    """
    beginnings = [beginning for beginning in COVERED_BY if module.startswith(beginning)]
    if not beginnings:
        raise ValueError(f"COVERED_BY of {__name__} has no entry for {module}.")
    files = [
        str(path.relative_to(ROOT))
        for pattern in COVERED_BY[max(beginnings, key=len)]
        for path in sorted(ROOT.glob(pattern))
    ]
    own = f"test_{pathlib.Path(module).stem}.py"
    return sorted(dict.fromkeys(files), key=lambda file: pathlib.Path(file).name != own)


def _matching(patterns: tuple[str, ...]) -> set[pathlib.Path]:
    return {path for pattern in patterns for path in ROOT.glob(pattern)}
