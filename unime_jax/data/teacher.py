"""Rows for distillation: each carries a teacher's embedding of its item."""

import dataclasses

from unime_jax.batch import Item, Row
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.packing import Preprocess


@dataclasses.dataclass(frozen=True)
class WithTeacher:
    """Callable `Item -> Row`; picklable if its parts are.

    The student reads the item with `suffix` after its text; the teacher's embedding is of the item
    without it.
    """

    preprocess: Preprocess
    teacher: Embeddings
    suffix: str

    def __call__(self, item: Item) -> Row:
        """One row; ValueError if it cannot be made, or the teacher has not seen the item."""
        try:
            vector = self.teacher.vector_of(item)
        except KeyError as error:
            raise ValueError(error.args[0]) from error
        row = self.preprocess(dataclasses.replace(item, suffix=self.suffix))
        return dataclasses.replace(row, teacher=vector)
