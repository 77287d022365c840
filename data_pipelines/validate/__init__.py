"""A look at training pairs before a run: rows that it would leave out, repeats, lengths of rows."""

from data_pipelines.validate.report import Options, validate

__all__ = ["Options", "validate"]
