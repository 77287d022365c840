"""Keys of job rounds: whole configs of the jobs that are its parts, and what they share."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.judge import JudgeConfig, JudgeDataConfig
from unime_jax.config.mine import MineConfig, MineDataConfig
from unime_jax.config.train import TrainConfig
from unime_jax.config.train_data import DataConfig
from unime_jax.training.loss_settings import Distillation


@dataclasses.dataclass(frozen=True)
class RoundsDataConfig:
    """The rows that are mined for, judged and trained on, which all parts have in common."""

    folder: str  # that all paths of `data` and `evaluation` are relative to
    train: str  # pairs, as in a training run
    columns: Mapping[str, str]  # as in a training run


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Rounds of mining negatives by the model of the round before, and training with them."""

    job: Literal["rounds"]  # what to do with this config
    rounds: int  # how often negatives are mined and trained with
    # what each round trains: the "last" model, which has mined for it, or the "first" one again, as
    # `train` describes it
    start: Literal["last", "first"]
    # a folder or a hub id, of the model that mines first and that training starts from; with
    # `initial`, what is trained when `start` is "first"
    backbone: str
    revision: str | None  # of a hub id: branch, tag or commit; None: its main branch as it is now
    # a training before the first round, whose model mines first; None: `backbone` does
    initial: TrainConfig | None
    mine: MineConfig  # of each round; the backbone is set by it
    judge: JudgeConfig  # of what was mined; its backbone "": no judge
    train: TrainConfig  # of each round, on what was mined or judged
    data: RoundsDataConfig

    @property
    def judged(self) -> bool:
        """Whether there is a judge between mining and training."""
        return bool(self.judge.backbone)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"config.rounds={self.rounds} must be at least 1")
        self._check_set_by_rounds()
        self._check_common()
        if self.train.data.negatives < 1:
            raise ValueError(
                f"config.train.data.negatives={self.train.data.negatives}: none of the mined "
                "negatives would be read; set it to how many a pair has at most."
            )
        if isinstance(self.train.loss, Distillation):
            raise ValueError(
                f"config.train.loss.objective={self.train.loss.objective!r} has no use for mined "
                "negatives; rounds are for the other losses."
            )
        if self.start == "last" and self.initial is None and self.train.init == "random":
            raise ValueError(
                "config.train.init='random' with config.start='last' and config.initial=None: a "
                "model must be trained before it can mine. Give config.initial, or "
                "config.train.init='pretrained'."
            )
        if self.judged:
            self._check_judging()

    def _check_set_by_rounds(self) -> None:
        for key, value in (
            ("train.data.mined", self.train.data.mined),
            ("train.init_from", self.train.init_from),
            ("judge.data.mined", self.judge.data.mined),
        ):
            if value:
                raise ValueError(
                    f"config.{key}={value!r} is set by each round to its own; leave it ''"
                    + (", and name a model by config.backbone." if key.endswith("from") else ".")
                )
        for name, part in (("train", self.train), ("initial", self.initial)):
            if part is not None and part.job != "train":
                raise ValueError(f"config.{name}.job={part.job!r}: a round trains; use 'train'")

    def _check_common(self) -> None:
        """That the parts have the rows and the first model in common, whatever made the config."""
        parts: dict[str, MineConfig | TrainConfig] = {"mine": self.mine, "train": self.train}
        both = [
            (f"{name}.{key}", getattr(part, key), key, getattr(self, key))
            for name, part in parts.items()
            for key in ("backbone", "revision")
        ]
        data: dict[str, MineDataConfig | DataConfig | JudgeDataConfig] = {
            name: part.data for name, part in parts.items()
        }
        if self.judged:
            data["judge"] = self.judge.data
        both += [
            (f"{name}.data.{key}", getattr(part, key), f"data.{key}", getattr(self.data, key))
            for name, part in data.items()
            for key in ("folder", "train", "columns")
        ]
        problems = [
            f"config.{key}={value!r} differs from config.{common}={wanted!r}, which all parts have "
            f"in common: set config.{common} alone."
            for key, value, common, wanted in both
            if value != wanted
        ]
        if problems:
            raise ValueError("\n".join(problems))

    def _check_judging(self) -> None:
        mined = self.mine.data
        if mined.sources or mined.first_rows or mined.first_rows_by_source:
            raise ValueError(
                "config.mine.data.sources, first_rows and first_rows_by_source with a judge: it "
                "judges all rows, so that all must be mined for. Leave them out, or "
                "config.judge.backbone=''."
            )
        if self.data.columns and self.train.data.eval:
            raise ValueError(
                "config.data.columns with config.judge.backbone and config.train.data.eval: judged "
                "rows have columns of their own, so that those of the evaluation's rows cannot be "
                "named. Rename the columns in the files."
            )
