"""MiniNLI: sentences about MiniMMEB's scenes and a teacher's view of them, for stage 1."""

from data_pipelines.mini_nli.prepare import prepare

__all__ = ["prepare"]
