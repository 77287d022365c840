"""Headline of a report: backbone, hardware, time and versions of a run, by name."""

import datetime
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax

from unime_jax.config import EvaluateConfig, TrainConfig


def of_training(settings: TrainConfig, goodput: Mapping[str, Any]) -> dict[str, str]:
    """Backbone, length, hardware and versions of a run that ends now, by name.

    `goodput` is its `Goodput.summary`.
    """
    seconds = sum(goodput["seconds"].values())
    starts, mmeb = goodput["starts"], settings.evaluation.mmeb
    return {
        "backbone": settings.backbone,
        "weights at the start": initialisation(settings),
        **({"instructions": settings.evaluation.instructions} if mmeb else {}),
        "steps": f"{settings.steps} of {settings.batch_size} pairs",
        "devices": _devices(),
        "finished": _now(),
        "took": duration(seconds) + (f" in {starts} starts" if starts > 1 else ""),
        **_versions(),
    }


def of_evaluation(
    settings: EvaluateConfig, peer: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Backbone, dtype, hardware and versions of an evaluation that ends now, by name.

    `peer`: what another library's model says in the place of dtype, hardware and jax.
    """
    revision = {"revision": settings.revision} if settings.revision else {}
    instructions = {"instructions": settings.evaluation.instructions}
    protocol = instructions if settings.evaluation.mmeb else {}
    own = {"dtype": settings.dtype, "devices": _devices(), **_versions()}
    if peer is not None:
        own = {**peer, "unime_jax": _version("unime_jax")}
    return {"backbone": settings.backbone, **revision, **protocol, **own, "finished": _now()}


def initialisation(settings: TrainConfig) -> str:
    """Origin of the weights before the first step, in a few words."""
    if settings.init_from:
        return f"of the run {settings.init_from}"
    return "random" if settings.init == "random" else "pretrained"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they matter: "2 h 5 min", "3 min 20 s", "12 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _versions() -> dict[str, str]:
    return {"unime_jax": _version("unime_jax"), "jax": jax.__version__}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # a clone that is run where it lies
