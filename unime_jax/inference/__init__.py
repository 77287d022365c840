"""Models that are open and ready to embed: the bulk encoder, and what `Embedder` is built on."""
