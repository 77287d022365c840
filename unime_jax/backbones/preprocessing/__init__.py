"""Texts and images to tokens, by a folder's own files."""
