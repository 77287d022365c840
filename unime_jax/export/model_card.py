"""The README.md of an exported folder: what the run itself knows, and nothing else."""

import pathlib
from collections.abc import Sequence

import jinja2

from unime_jax import outcome
from unime_jax.backbones import Backbone
from unime_jax.batch import Item
from unime_jax.config import TrainConfig
from unime_jax.evaluation import scores
from unime_jax.objectives import Distillation, Objective

EXAMPLES = 4  # prompts that are shown
BASE = (
    "frozen linear layers were rounded to int8, one scale per output channel; the weights here are "
    "what was trained, rounding included. Adapters exported alone are close to that on the "
    "original base, not equal"
)


def write(
    folder: pathlib.Path,
    workdir: pathlib.Path,
    settings: TrainConfig,
    backbone: Backbone,
    *,
    steps: int,
    cosine: float,
    items: Sequence[Item],
    sources: Sequence[str],
) -> None:
    """Writes <folder>/README.md.

    Args:
      folder: the export.
      workdir: of the run; its config.json, evaluation.json and outcome.json are quoted.
      settings: of the run.
      backbone: that it started from.
      steps: done when the weights were exported.
      cosine: the lowest of the self-check.
      items: of the self-check.
      sources: names of the training sources.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    found = scores.read_scores(workdir)
    prompts = [repr(backbone.preprocess.prompt.rendered(item)) for item in items]
    hub_id = None if pathlib.Path(settings.backbone).exists() else settings.backbone
    text = environment.get_template("model_card.md.j2").render(
        name=workdir.resolve().name,
        folder=folder.name,
        base_model=hub_id,
        origin=_origin(settings),
        dimension=backbone.dimension,
        max_length=settings.data.buckets[-1][0],
        caveats=backbone.caveats,
        examples=list(dict.fromkeys(prompts))[:EXAMPLES],
        cosine=cosine,
        facts=_facts(settings, steps, sources) | _warnings(workdir),
        scores=scores.table(found.get("before"), found.get("after")) if found else "",
        evaluated=", ".join(found["after"]["datasets"]) if "after" in found else "",
        config=(workdir / "config.json").read_text().strip(),
    )
    (folder / "README.md").write_text(text)


def _origin(settings: TrainConfig) -> str:
    if settings.init_from:
        run = pathlib.Path(settings.init_from).name
        return f"It started from the result of the run `{run}`, of `{settings.backbone}`."
    start = "has the architecture of" if settings.init == "random" else "started from"
    return f"It {start} `{settings.backbone}`."


def _facts(settings: TrainConfig, steps: int, sources: Sequence[str]) -> dict[str, str]:
    lora = settings.lora
    adapters = f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.rank}, alpha {lora.alpha}, merged"
    facts = {
        "steps": f"{steps} of {settings.batch_size} pairs",
        "loss": _loss(settings.loss),
        "trained": adapters if lora.rank else "parameters chosen by the rules in `trainable`",
        "optimizer": f"AdamW, learning rate {settings.optimizer.learning_rate}, "
        f"{settings.optimizer.schedule} after {settings.optimizer.warmup_steps} warmup steps",
        "data": f"{settings.data.train}: {', '.join(sources)}" if sources else "none",
        "weights": settings.export.dtype,
    }
    if settings.execution.frozen_dtype == "int8":
        facts["base"] = BASE
    return facts


def _warnings(workdir: pathlib.Path) -> dict[str, str]:
    """What the run found wrong with what it learnt."""
    findings = outcome.read(workdir).get("findings", [])
    text = "; ".join(finding["message"] for finding in findings)
    return {"**warning**": text} if text else {}


def _loss(loss: Objective) -> str:
    parts = [f"temperature {loss.temperature}"]
    if isinstance(loss, Distillation):
        towards = loss.direction.replace("_", " and ")
        parts.append(f"KL between the batch similarities of {towards}, texts: {loss.texts}")
        return "relational distillation: " + ", ".join(parts)
    if loss.hard_negatives is not None:
        parts.append(f"the {loss.hard_negatives} hardest in-batch negatives")
    if loss.false_negative_margin is not None:
        parts.append(f"false negatives above the positive + {loss.false_negative_margin} left out")
    if loss.hardness:
        parts.append(f"negatives weighted by hardness {loss.hardness}")
    if loss.symmetric:
        parts.append("both directions")
    return "contrastive: " + ", ".join(parts)
