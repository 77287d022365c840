"""Items of a dataset and their images as vectors: each item once, and kept on disk if wanted."""
