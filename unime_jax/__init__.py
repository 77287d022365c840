"""Universal multimodal embedding models in JAX; `Embedder` is the way in for using one."""

from typing import TYPE_CHECKING, Any

from unime_jax.operations import quiet

if TYPE_CHECKING:
    from unime_jax.embedder import Embedder

__all__ = ["Embedder", "__version__"]

__version__ = "0.1.0"  # setup.py reads it here

quiet.silence()


def __getattr__(name: str) -> Any:
    # On demand: transformers takes seconds to import, and every data worker imports this package.
    if name == "Embedder":
        from unime_jax.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
