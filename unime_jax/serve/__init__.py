"""An HTTP server of embeddings, `python -m unime_jax.serve`; needs the extra [serve]."""
