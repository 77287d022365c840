"""Groups of keys that several jobs have."""

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: the devices that the other two leave."""

    data: int  # replicas of the weights; the batch is spread over them
    fsdp: int  # parts of the weights; the batch is spread over them, too
    tensor: int  # parts of each layer, whose activations are spread over them


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Data that is generated before the run, where it is missing."""

    module: str  # with `prepare(folder, seed=, train_rows=, eval_rows=)`; "": none
    seed: int  # of what is generated
    train_rows: int  # of each training source
    eval_rows: int  # of each evaluation dataset


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Files of vectors. A run that is killed loses one of them at most."""

    block: int  # vectors of a file
    dtype: Literal["float16", "float32"]  # of the vectors


def check_first_rows(first_rows: int, by_source: Mapping[str, int]) -> None:
    """Raises ValueError for a negative number of rows, of all sources or of a single one."""
    counts = {"": first_rows, **by_source}
    for name, rows in counts.items():
        if rows < 0:
            key = f"first_rows_by_source[{name!r}]" if name else "first_rows"
            raise ValueError(
                f"config.data.{key}={rows}: it is the rows of a source that are used; 0: all"
            )
