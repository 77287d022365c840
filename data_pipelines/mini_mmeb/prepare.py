"""Build what is missing of MiniMMEB in a folder: four ArrayRecord configs and a backbone."""

import dataclasses
import os
import tempfile
from pathlib import Path

from data_pipelines.mini_mmeb.backbone import BackboneSize, TowerSize, write_backbone
from data_pipelines.preparing import check_parameters, note_parameters, preparing

NAME, VERSION = "mini_mmeb", "1.0.0"
CONFIGS = ("train", "eval", "composition", "images")

TINY = BackboneSize(
    text=TowerSize(hidden_size=128, layers=3, heads=4, kv_heads=2, intermediate_size=256),
    vision=TowerSize(hidden_size=96, layers=2, heads=4, intermediate_size=192),
    tile=48,
    patch=12,
    vocabulary=800,
)


def prepare(
    data_dir: str | os.PathLike,
    *,
    seed: int = 0,
    train_rows: int = 320,
    eval_rows: int = 100,
    backbone: BackboneSize = TINY,
) -> None:
    """Build whatever is missing of <data_dir>/mini_mmeb/{train,eval,composition,images,backbone}.

    `train_rows` counts the rows of each training source, `eval_rows` those of each evaluation
    dataset and composition split. Everything follows from the arguments, byte for byte. Each part
    appears under its name only when it is whole, so an interrupted build is simply taken up again,
    and a build by another process is waited for.

    Raises ValueError if the folder was built with other arguments, or if a number of rows is < 1.
    """
    if train_rows < 1 or eval_rows < 1:
        raise ValueError(f"train_rows={train_rows}, eval_rows={eval_rows}: both must be positive")
    folder = Path(data_dir).expanduser() / NAME
    rows = {"seed": seed, "train_rows": train_rows, "eval_rows": eval_rows}
    wanted = rows | {"backbone": dataclasses.asdict(backbone)}
    if check_parameters(folder, wanted) and not _missing(folder):
        return  # nothing is written, so that it may lie on a disk that only can be read
    with preparing(folder):
        if not check_parameters(folder, wanted):
            note_parameters(folder, wanted)
        missing = _missing(folder)
        configs = [name for name in CONFIGS if name in missing]
        if configs:
            _build(folder, configs, rows)
        if "backbone" in missing:
            from data_pipelines.mini_mmeb.content import texts

            write_backbone(folder / "backbone", texts(seed, train_rows), backbone)


def _missing(folder: Path) -> list[str]:
    """The parts that are not there, in the order in which they are built."""
    places = {name: folder / name / VERSION for name in CONFIGS} | {"backbone": folder / "backbone"}
    return [name for name, place in places.items() if not place.is_dir()]


def _build(folder: Path, configs: list[str], rows: dict[str, int]) -> None:
    import tensorflow_datasets as tfds

    from data_pipelines.mini_mmeb.builder import MiniMmeb

    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as nothing_is_downloaded:
        for config in configs:
            builder = MiniMmeb(config=config, data_dir=folder.parent, parameters=rows)
            builder.download_and_prepare(download_dir=nothing_is_downloaded)
