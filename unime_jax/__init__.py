"""Universal multimodal embedding models in JAX; `Embedder` and `Index` are for using one."""

from typing import TYPE_CHECKING, Any

from unime_jax.operations import quiet

if TYPE_CHECKING:
    from unime_jax.data.image_urls import ImageUrls
    from unime_jax.embedder import Embedder
    from unime_jax.index import Index

__all__ = ["Embedder", "ImageUrls", "Index", "__version__"]

__version__ = "0.1.0"  # setup.py reads it here

quiet.silence()


def __getattr__(name: str) -> Any:
    # On demand: transformers takes seconds to import, and every data worker imports this package.
    if name == "Embedder":
        from unime_jax.embedder import Embedder

        return Embedder
    if name == "ImageUrls":
        from unime_jax.data.image_urls import ImageUrls

        return ImageUrls
    if name == "Index":
        from unime_jax.index import Index

        return Index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
