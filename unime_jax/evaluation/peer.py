"""A model of another library in an evaluation: its encode function, and what results are of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unime_jax.evaluation.encoding.item_table import Encode


@dataclasses.dataclass(frozen=True, eq=False)
class Peer:
    """A model of another library, or of nobody's.

    Attributes:
      name: of the model, for people.
      encode: its embeddings of items, of any length but 0: they are compared by their cosine.
      provenance: all that its embeddings depend on, as JSON, so that results of two models are
        never mixed: its name, revision or content, settings, and the library's version.
      dimension: numbers of an embedding; None: unknown.
      headline: for the report, by name: versions of the libraries that run it, dtype, device.
    """

    name: str
    encode: Encode
    provenance: Mapping[str, Any]
    headline: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dimension: int | None = None
