"""A model without weights, whose embeddings follow from texts, and which waits where it is told."""

import threading

import numpy as np

from unime_jax.batch import Row
from unime_jax.data.truncation import kept
from unime_jax.data.user_inputs import UserInput, to_item
from unime_jax.inference.encode import NonFiniteError

WIDTH = 4
MAX_LENGTH = 12  # characters


class FakeModel:
    """Each character is a token; an embedding is the direction of the sums of their codes.

    Attributes:
      batches: the texts of each batch.
      goes: cleared, batches wait.
      begun: set when a batch waits.
      failure: is raised by the next batch in the place of an embedding.
      nonfinite: texts whose embeddings are not finite.
    """

    max_length = MAX_LENGTH

    def __init__(self):
        self.batches: list[list[str]] = []
        self.goes, self.begun = threading.Event(), threading.Event()
        self.goes.set()
        self.failure: Exception | None = None
        self.nonfinite: set[str] = set()

    def prompt(self, text, name):
        if name not in (None, "query"):
            raise ValueError(f"there is no prompt {name!r}")
        return "q:" if name else text or ""

    def kept(self, dimensions):
        return kept(WIDTH, dimensions)

    def row(self, item: UserInput, prompt: str, suffix: str) -> Row:
        item = to_item(item, prompt, suffix)
        codes = [ord(c) for c in prompt + item.text + suffix] + [7 for _ in item.media]
        tokens = np.array(codes, np.int32)
        cut = max(0, len(tokens) - MAX_LENGTH)
        places = np.zeros((len(tokens) - cut, 1), np.int32)
        return Row(
            tokens[:MAX_LENGTH], places, places, truncated=cut, unmatched_markers=item.text == "?"
        )

    def encode(self, rows):
        self.begun.set()
        assert self.goes.wait(30)
        if self.failure:
            error, self.failure = self.failure, None
            raise error
        texts = ["".join(map(chr, row.tokens)) for row in rows]
        self.batches.append(texts)
        if bad := [number for number, text in enumerate(texts) if text in self.nonfinite]:
            raise NonFiniteError(bad, len(rows), "its weights are NaN")
        return np.stack([embedded(row) for row in rows])


def embedded(row: Row) -> np.ndarray:
    sums = np.array([row.tokens[n::WIDTH].sum() + 1 for n in range(WIDTH)], np.float32)
    return sums / np.linalg.norm(sums)
