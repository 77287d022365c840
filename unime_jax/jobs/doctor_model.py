"""The model of a training run as the run would open and trace it, with nothing read or computed."""

import dataclasses
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from unime_jax import config, files, sharding
from unime_jax.backbones import Backbone
from unime_jax.data.embedding_store import Embeddings, open_embeddings
from unime_jax.data.formats import Source
from unime_jax.data.packing import Preprocess
from unime_jax.data.teacher import WithTeacher
from unime_jax.jobs.common_checks import open_model
from unime_jax.planning import chips, program
from unime_jax.training import automatic, setup, size_checks


@dataclasses.dataclass(frozen=True)
class Model:
    """A run's model.

    Attributes:
      settings: with a value for every key that was left open.
      backbone: takes as many tokens as the run's evaluations do.
      preprocess: of training rows.
      run: traced.
      teacher: width of a teacher's vectors; 0: there is none.
    """

    settings: config.TrainConfig
    backbone: Backbone
    preprocess: Preprocess
    run: setup.Setup
    teacher: int

    @property
    def parameters(self) -> int:
        """How many there are, adapters included."""
        return sum(leaf.size for leaf in self.run.abstract_model.parameters.values())

    @property
    def trained(self) -> int:
        """How many of them are trained."""
        model = self.run.abstract_model
        return sum(model.parameters[path].size for path in model.trainable)


def source_of(settings: config.TrainConfig) -> tuple[str, str | None]:
    """The folder or hub id that the weights come from, and its revision.

    Raises:
      ValueError: the run that it is to start from has exported nothing.
    """
    if settings.init_from:
        return setup.exported(settings.init_from), None
    return settings.backbone, settings.revision


def open_backbone(settings: config.TrainConfig, longest: int | None) -> Backbone:
    """The backbone without its weights; `longest`: tokens of a row, None: as it takes."""
    source, revision = source_of(settings)
    return open_model(
        source, revision, longest, settings.processing, weights=False, clips=settings.data.clips
    )


def longest_of(settings: config.TrainConfig) -> int | None:
    """Tokens of the longest bucket; None: buckets are chosen by the data."""
    return max((bucket.tokens for bucket in settings.data.buckets), default=None)


def mesh_of(settings: config.TrainConfig, slice_name: str) -> Mesh:
    """The run's mesh over a slice, or over the devices here if `slice_name` is "".

    Raises:
      ValueError: it does not fit them, or the sizes of batches do not fit it.
    """
    if not slice_name:
        return setup.make_mesh(settings)
    mesh = program.abstract_mesh(settings.mesh, chips.parse(slice_name).chips)
    size_checks.check_sizes(settings, mesh)
    return mesh


def trace(
    settings: config.TrainConfig,
    backbone: Backbone,
    rows: Mapping[str, Source],
    slice_name: str,
) -> Model:
    """The run's model, traced.

    Args:
      backbone: of `open_backbone`.
      rows: the training data by source; none if they are not there yet.
      slice_name: as of `mesh_of`.

    Raises:
      ValueError: a part of the config does not fit the model, the mesh or the data.
    """
    mesh = mesh_of(settings, slice_name)
    complete = settings
    if automatic.left_open(settings):
        here = mesh
        if slice_name:  # whose memory decides below
            here = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
        complete = automatic.resolved(settings, backbone, rows, None, here)
        if slice_name:
            complete = automatic.with_memory(
                _open_again(complete, settings),
                backbone,
                mesh,
                int(chips.parse(slice_name).chip.hbm),
            )
    cut = backbone
    if not settings.data.buckets:
        cut = open_backbone(settings, complete.data.buckets[-1].tokens)
    teacher = teacher_of(settings)
    width = teacher.dimension if teacher else int(bool(settings.data.teacher))
    run = program.train_setup(complete, backbone, mesh, teacher=width)
    preprocess: Preprocess = cut.preprocess
    if teacher is not None:
        preprocess = WithTeacher(preprocess, teacher, settings.data.suffix)
    return Model(complete, backbone, preprocess, run, width)


def teacher_of(settings: config.TrainConfig) -> Embeddings | None:
    """The teacher's vectors; None: the run has no teacher, or they are not there yet."""
    folder = files.as_path(settings.data.folder) / settings.data.teacher
    return open_embeddings(folder) if settings.data.teacher and folder.exists() else None


def _open_again(complete: config.TrainConfig, given: config.TrainConfig) -> config.TrainConfig:
    """Keys that follow from devices as they were given, so that other devices can decide."""
    execution = dataclasses.replace(
        complete.execution,
        remat=given.execution.remat,
        kept_chunks=given.execution.kept_chunks,
        merged_chunks=given.execution.merged_chunks,
    )
    return dataclasses.replace(complete, chunk_size=given.chunk_size, execution=execution)
