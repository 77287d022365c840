"""Values of a training config that are valid, and seldom meant."""

from typing import Any

from unime_jax import config, files
from unime_jax.jobs.doctor_model import Model
from unime_jax.jobs.doctor_report import Report
from unime_jax.operations import recipes
from unime_jax.training import automatic
from unime_jax.training.loss_settings import Distillation, JudgeDistillation, contrastive_part

# Learning rates that are customary: of adapters (UniME 2e-5 to 5e-4, VLM2Vec 2e-5, UniME-V2 1e-4),
# of a model from scratch, and of all weights of a pretrained one, so many times what
# `automatic.by_size` gives for its size.
ADAPTERS = (1e-5, 1e-3)
SCRATCH = (1e-5, 1e-2)
OF_SIZE = (1 / 30, 7.0)
WARMUP = 0.5  # of all steps
TEMPERATURES = (0.005, 0.2)
HARDNESS = 20.0
LARGEST_SEED = 2**63 - 1
PAPERS = ("stage1", "stage2", "llave", "unime_v2", "presets")
# Keys of which a paper's recipe is another recipe if they change.
MATTERS = (
    "processing",
    "loss",
    "data.suffix",
    "data.instructions",
    "evaluation.image_prompt",
    "evaluation.instructions",
    "lora.targets",
    "trainable",
    "infonce_steps",
)


def check(report: Report, settings: config.TrainConfig, model: Model | None) -> None:
    """All that is unusual. `model`: None, it could not be opened or traced."""
    _check_warmup(report, settings)
    _check_temperature(report, settings)
    _check_seeds(report, settings)
    if settings.infonce_steps and settings.init == "pretrained":
        report.add(
            "note",
            "settings.infonce_steps",
            f"config.infonce_steps={settings.infonce_steps} begin with plain InfoNCE, which is for "
            "models from scratch, and the weights are pretrained",
            where="config.infonce_steps",
            do="Set it to 0.",
        )
    if settings.init == "random" and settings.lora.rank and not settings.init_from:
        report.add(
            "warning",
            "settings.init",
            f"config.init='random' with adapters of rank {settings.lora.rank}: what is adapted is "
            "random and stays so",
            where="config.init",
            do="Set config.init=pretrained.",
        )
    if model is None:
        report.skip(
            "settings.learning_rate", "how much is trained is not known without the backbone"
        )
    else:
        _check_rate(report, model)


def _check_rate(report: Report, model: Model) -> None:
    settings = model.settings
    rate = settings.optimizer.learning_rate
    assert rate is not None  # resolved with the model
    if settings.lora.rank:
        kind, (low, high) = f"adapters of rank {settings.lora.rank}", ADAPTERS
    elif settings.init == "random" and not settings.init_from:
        kind, (low, high) = "a model from scratch", SCRATCH
    else:
        customary = automatic.WEIGHTS_RATE * (automatic.OF_PARAMETERS / model.parameters) ** 0.5
        low, high = (customary * times for times in OF_SIZE)
        kind = f"all weights of a pretrained model of {model.parameters:.1e} parameters"
    if low <= rate <= high:
        return
    other = "of adapters" if rate > high and not settings.lora.rank else "of all weights"
    likely = f", and looks like one {other}" if _is_of_others(rate, settings) else ""
    report.add(
        "warning",
        "settings.learning_rate",
        f"config.optimizer.learning_rate={rate:g} is for {kind}, for which {low:.0e} to {high:.0e} "
        f"is customary{likely}",
        where="config.optimizer.learning_rate",
        do="The loss would hardly fall with a rate that is too low, and the model forgets what it "
        "knew with one that is too high; config.optimizer.learning_rate=None in "
        "experiments/own.py chooses by what is trained.",
    )


def _is_of_others(rate: float, settings: config.TrainConfig) -> bool:
    """Whether a rate beyond its own range is customary for the other kind of training."""
    return 1e-4 <= rate <= ADAPTERS[1] if not settings.lora.rank else rate < ADAPTERS[0]


def _check_warmup(report: Report, settings: config.TrainConfig) -> None:
    warmup, steps = settings.optimizer.warmup_steps or 0, settings.steps
    if WARMUP * steps < warmup < steps:
        report.add(
            "warning",
            "settings.warmup",
            f"config.optimizer.warmup_steps={warmup} of {steps} steps: the full learning rate is "
            f"there for {steps - warmup} steps alone",
            where="config.optimizer.warmup_steps",
            do="A tenth of the steps is customary; None chooses it.",
        )


def _check_temperature(report: Report, settings: config.TrainConfig) -> None:
    loss = settings.loss
    temperatures = {"loss.temperature": loss.temperature}
    key, contrast = contrastive_part(loss)
    if isinstance(loss, JudgeDistillation) and loss.contrastive_weight and contrast:
        temperatures[f"{key}.temperature"] = contrast.temperature
    if isinstance(loss, Distillation) and loss.teacher_temperature is not None:
        temperatures["loss.teacher_temperature"] = loss.teacher_temperature
    low, high = TEMPERATURES
    for name, value in temperatures.items():
        if not low <= value <= high:
            what = (
                "hardly any negative but the hardest counts" if value < low else "all count alike"
            )
            report.add(
                "warning",
                "settings.temperature",
                f"config.{name}={value:g}: cosines are divided by it, so that {what}; embedders "
                "have 0.01 to 0.07",
                where=f"config.{name}",
                do="Set it to 0.02 (UniME), or what the recipe you follow has; it is no logit "
                "scale, which is its inverse.",
            )
    if contrast is not None and contrast.hardness > HARDNESS:
        report.add(
            "warning",
            "settings.hardness",
            f"config.{key}.hardness={contrast.hardness:g} weighs a negative by e to the power of "
            "that times its cosine (LLaVE: 9), which leaves one negative",
            where=f"config.{key}.hardness",
            do="Lower it; experiments/study.py has 3, 9 and 27 beside each other.",
        )


def _check_seeds(report: Report, settings: config.TrainConfig) -> None:
    for key, seed in {
        "seed": settings.seed,
        "data.prepare.seed": settings.data.prepare.seed,
    }.items():
        if not 0 <= seed <= LARGEST_SEED:
            report.add(
                "error",
                "settings.seed",
                f"config.{key}={seed} must be between 0 and {LARGEST_SEED}",
                where=f"config.{key}",
                do="Give a small number that is not negative.",
            )


def check_recipe(report: Report, values: dict[str, Any], recipe: str) -> None:
    """Keys that make another method of a paper's recipe, where they differ from it."""
    if recipes.name_of(recipe) not in PAPERS:
        return
    changed = files.changes(recipes.load(recipe).to_dict(), values)
    for key, (before, now) in changed.items():
        if any(key == group or key.startswith(f"{group}.") for group in MATTERS):
            report.add(
                "note",
                "settings.recipe",
                f"config.{key} is {now}, and {recipe} has {before}: scores are not those of its "
                "paper",
                where=f"config.{key}",
            )
