"""From rows on disk to packed batches: sources, mixture, pack, loader, quarantine (host code)."""
