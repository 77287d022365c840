"""Memory of a program on one chip, and of what lies there beside it."""

import dataclasses
from collections.abc import Sequence

from unime_jax import sharding
from unime_jax.data.shapes import Bucket
from unime_jax.models import forward, frozen_vision
from unime_jax.planning.chips import Slice
from unime_jax.planning.compiler import Compiled, argument_bytes, chip_bytes
from unime_jax.planning.program import Program
from unime_jax.training import activations


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip while a program runs.

    Attributes:
      weights: exact, by shardings; those that only evaluations during training read included.
      optimizer: exact, its state.
      inputs: exact; two batches, as the next one is placed while a program runs. Of a program that
        embeds the embeddings of the other call as well.
      gradients: exact, of the trainable parameters.
      activations: kept for the backward pass of a chunk, and of those that are not encoded twice,
        as traced; the compiler may fuse or drop a part. They are among `temporaries`.
      temporaries: the compiler's; None: there is no compiler here.
      peak: the compiler's for the program, with what lies beside its arguments; None as above.
      capacity: of the chip.
      features: of images, made by a frozen tower and kept for both passes over a batch
        (`execution.keep_features`), as traced. They are among `temporaries`.
    """

    weights: int
    optimizer: int
    inputs: int
    gradients: int
    activations: int
    temporaries: int | None
    peak: int | None
    capacity: int
    features: int = 0

    @property
    def held(self) -> int:
        """Bytes that lie there before the program starts."""
        return self.weights + self.optimizer + self.inputs

    @property
    def known_peak(self) -> int:
        """The peak, or the part of it that is known without a compiler."""
        return self.held if self.peak is None else self.peak

    @property
    def fits(self) -> bool | None:
        """Whether the program fits; None if only a part is known, and that part fits."""
        if self.known_peak > self.capacity:
            return False
        return None if self.peak is None else True


def memory(
    program: Program, where: Slice, kept: Sequence[float], compiled: Compiled | None
) -> Memory:
    """Memory of one chip.

    `kept`: bytes that the backward pass needs of a row, by bucket, see `kept_of_a_row`.
    """
    trainable, _ = program.parameters
    parameters, optimizer = chip_bytes(program.parameters), chip_bytes(program.opt_state)
    idle, ahead = chip_bytes(program.idle), chip_bytes(program.next_call)
    return Memory(
        weights=parameters + idle,
        optimizer=optimizer,
        inputs=argument_bytes(program) - parameters - optimizer + ahead,
        gradients=chip_bytes(trainable),
        activations=_activations(program, kept),
        temporaries=compiled.temporaries if compiled else None,
        peak=compiled.peak + idle + ahead if compiled else None,
        capacity=int(where.chip.hbm),
        features=_features(program),
    )


def _features(program: Program) -> int:
    """Bytes on one chip of the features of images that the program keeps."""
    if program.vision is None:
        return 0
    groups = tuple(group for group in program.groups if group.patches is not None)
    parameters = program.parameters[0] | program.parameters[1]
    total = frozen_vision.bytes_of(program.vision, parameters, groups)
    return total // sharding.row_shards(program.mesh)


def _activations(program: Program, kept: Sequence[float]) -> int:
    """Bytes of activations on one chip, given those of a row by bucket."""
    shapes, shards = program.shapes, sharding.row_shards(program.mesh)
    chunks = [shapes.chunk_rows(b) // shards * row for b, row in zip(shapes.buckets, kept)]
    whole = sum(count * chunk for count, chunk in zip(program.kept, chunks))
    again = [
        chunk
        for bucket, count, chunk in zip(shapes.buckets, program.kept, chunks)
        if count < shapes.chunks(bucket)
    ]
    return round(whole + max(again, default=0.0))


def kept_of_a_row(program: Program, bucket: Bucket) -> float:
    """Bytes that the backward pass needs of one more row, as traced."""
    encode = forward.make_encode(program.graph, program.execution)
    trainable, frozen, _ = program.chunk(1, bucket)
    return activations.bytes_of_a_row(encode, trainable, frozen, bucket, program.shapes.layout)
