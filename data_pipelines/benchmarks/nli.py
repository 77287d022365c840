"""SimCSE's NLI triples, which UniME's first stage is trained on: a file of pairs, as it is."""

import shutil
from pathlib import Path

from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from data_pipelines.texts.prepare import COLUMNS
from unime_jax.data.formats import open_dataset

FILE = "nli_for_simcse.csv"


def read(raw: Path, folder: Path) -> Prepared:
    """The file, copied, in the columns sent0, sent1 and hard_neg, which data.train knows.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing.
    """
    file = folder / "rows" / "nli.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(raw / FILE, file)
    (rows,) = open_dataset(file).values()
    columns = tuple(rows[0]) if len(rows) else ()
    if missing := [name for name in COLUMNS if name not in columns]:
        raise ValueError(f"{raw / FILE} has no {', '.join(missing)} among its columns {columns}")
    return Prepared("rows/nli.csv", "", {"nli": len(rows)})


SETS = (
    PublicSet(
        name="nli",
        kind="pairs",
        repository="princeton-nlp/datasets-for-simcse",
        revision="",  # its main branch; set.json has the commit
        files=(FILE,),
        counts={},
        read=read,
    ),
)
