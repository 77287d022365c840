"""From rows on disk to packed batches: formats, schema, mixture, loader, packing (host code)."""
