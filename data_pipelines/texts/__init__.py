"""Text pairs and triples, such as SimCSE's NLI file, as a training source for distillation."""

from data_pipelines.texts.prepare import Triple, prepare, write

__all__ = ["Triple", "prepare", "write"]
