"""Evaluation of embeddings: MMEB hit@1, composition accuracy, averages and the report of a run."""
