"""MiniMMEB: MMEB in miniature, drawn rather than downloaded, for tests and for a first run."""

from data_pipelines.mini_mmeb.prepare import TINY, prepare

__all__ = ["TINY", "prepare"]
