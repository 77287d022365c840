"""Parts of rounds: which jobs run one after another, each with its config and work directory."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from unime_jax import files

INITIAL = "round_0/train"


@dataclasses.dataclass(frozen=True)
class Part:
    """A job of a round.

    Attributes:
      group: the key of its config in that of the rounds.
      job: "mine", "judge" or "train".
      round: its number; 0 is the training before the first one.
      values: its whole config.
    """

    group: str
    job: str
    round: int
    values: ConfigDict

    @property
    def name(self) -> str:
        """Of its work directory, below that of the rounds."""
        return f"round_{self.round}/{self.job}"


def parts(rounds: ConfigDict, workdir: files.Path) -> Iterator[Part]:
    """All parts in their order; `rounds` is the config of all, `workdir` theirs."""
    trained: files.Path | None = None  # work directory of the newest training
    if rounds.initial is not None:
        yield Part("initial", "train", 0, _copy(rounds.initial, {}))
        trained = workdir / INITIAL
    for number in range(1, rounds.rounds + 1):
        folder = workdir / f"round_{number}"
        model: dict[str, Any] = {}
        if trained is not None:
            model = {"backbone": str(trained / "hf"), "revision": None}
        yield Part("mine", "mine", number, _copy(rounds.mine, model))
        changes: dict[str, Any] = {"data.mined": str(folder / "mine")}
        if rounds.judge.backbone:
            yield Part("judge", "judge", number, _copy(rounds.judge, changes))
            rows = files.absolute(folder / "judge" / "rows")
            changes = {"data.train": str(rows), "data.columns": ConfigDict()}
        if rounds.start == "last" and trained is not None:
            changes["init_from"] = str(trained)
        yield Part("train", "train", number, _copy(rounds.train, changes))
        trained = folder / "train"


def _copy(values: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A part's config with values of these dotted keys."""
    copy = values.copy_and_resolve_references()
    with copy.ignore_type(), copy.unlocked():
        for key, value in changes.items():
            *above, name = key.split(".")
            group = copy
            for step in above:
                group = group[step]
            group[name] = value
    return copy
