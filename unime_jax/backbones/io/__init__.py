"""Hugging Face folders on disk: tensors, names, adapters, configurations."""
