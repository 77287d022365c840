"""MiniVideo: clips of moving and changing shapes, drawn rather than downloaded, as MiniMMEB is."""

from data_pipelines.mini_video.prepare import prepare

__all__ = ["prepare"]
