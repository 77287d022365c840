"""A model that is open and ready to embed, which is what `Embedder` is built on."""
