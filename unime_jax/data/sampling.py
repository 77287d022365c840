"""How often sources are drawn by their sizes, and which of them may share a batch."""

from collections.abc import Iterable, Mapping

import numpy as np

from unime_jax.data.formats import Source
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import check_names, to_example

ROWS = 64  # of a source that are looked at for their queries' modality
IMAGES, TEXTS = "images", "texts"  # modalities of queries: with an image, or of text alone


def weights_by_size(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Weights proportional to size^(1 / temperature), which sum to one (Conneau and Lample 2019).

    Args:
      sizes: rows of each source.
      temperature: 1: as many of each source as it has; the higher, the more alike.
    """
    logs = {name: np.log(max(size, 1)) / temperature for name, size in sizes.items()}
    most = max(logs.values(), default=0.0)
    weights = {name: float(np.exp(log - most)) for name, log in logs.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def weights_of(
    sizes: Mapping[str, int], weights: Mapping[str, float], temperature: float | None
) -> dict[str, float]:
    """Weights of `weights_by_size`, if there is a temperature; else those given, or equal ones."""
    if temperature is not None:
        return weights_by_size(sizes, temperature)
    return dict(weights) or dict.fromkeys(sizes, 1.0)


def query_modalities(rows: Mapping[str, Source], names: Iterable[str]) -> dict[str, str]:
    """`IMAGES` or `TEXTS` by source: whether its queries have images.

    `ROWS` rows of each source are looked at, from its first to its last at equal distances; those
    that training leaves out are left out. A source without a good one among them has `TEXTS`.

    Raises:
      ValueError: there is no such source, or one has queries of both kinds.
    """
    names = sorted(names)
    check_names(names, rows)
    return {name: _modality(name, rows[name]) for name in names}


def _modality(name: str, source: Source) -> str:
    seen: dict[str, int] = {}  # a row of each modality
    for row in np.unique(np.linspace(0, len(source) - 1, ROWS, dtype=np.int64)).tolist():
        try:
            example = to_example(name, source[row], str(row), draw=lambda count: ())
        except BadExample:
            continue
        seen.setdefault(IMAGES if example.query.media else TEXTS, row)
    if len(seen) > 1:
        raise ValueError(
            f"config.data.split_modalities=True, but source {name!r} has queries with images (row"
            f" {seen[IMAGES]}) and without (row {seen[TEXTS]}): make two sources of it, or set the"
            " key to False"
        )
    return next(iter(seen), TEXTS)
