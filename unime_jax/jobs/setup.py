"""What every job on a training config starts from: mesh, model, plans of batches, parameters."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import backbones, config, optimizer, paths, sharding, state, step
from unime_jax.batch import Item
from unime_jax.data import pack, quarantine, sources
from unime_jax.data.plan import Bucket, Plan, pair_plan
from unime_jax.encode import Encoder, make_encoder
from unime_jax.models.vlm import Execution


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run before anything is computed; `test_plan` is for rows that have no partner."""

    settings: config.TrainConfig
    mesh: Mesh
    backbone: backbones.Backbone
    execution: Execution
    blueprint: state.Blueprint
    encode: step.Encode
    plan: Plan
    test_plan: Plan

    def initial(self) -> paths.Parameters:
        """The parameters before the first step, always the same."""
        return state.make_parameters(
            self.backbone,
            self.blueprint,
            adapters=self.settings.lora,
            init=self.settings.init,
            seed=self.settings.seed,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """The config's optimizer for what is trained."""
        settings = self.settings
        return optimizer.make_optimizer(
            settings.optimizer, settings.steps, self.blueprint.trainable
        )

    def initial_state(self) -> step.TrainState:
        """The state before the first step."""
        return state.make_state(self.blueprint, self.initial(), self.optimizer(), self.mesh)

    def encoder(self, parameters: paths.Parameters) -> Encoder:
        """Embeddings of items under these parameters, trainable and frozen."""
        parts = (
            self.blueprint.part(parameters, trainable=True),
            self.blueprint.part(parameters, trainable=False),
        )
        return make_encoder(self.encode, parts, self.backbone.preprocess, self.test_plan, self.mesh)


def make_mesh(settings: config.TrainConfig) -> Mesh:
    """The config's mesh over all devices.

    Raises:
      ValueError: it does not fit them, or the sizes of batches do not fit it.
    """
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
    shards = sharding.row_shards(mesh)
    for key in ("batch_size", "chunk_size"):
        if getattr(settings, key) % shards:
            raise ValueError(
                f"config.{key}={getattr(settings, key)} must be a multiple of {shards}, the number "
                "of row shards (mesh.data x mesh.fsdp)."
            )
    k = settings.loss.hard_negatives
    if k is not None and k >= settings.batch_size:
        raise ValueError(
            f"config.loss.hard_negatives={k} must be below config.batch_size="
            f"{settings.batch_size}: a batch offers at most batch_size - 1 in-batch negatives."
        )
    return mesh


def set_up(settings: config.TrainConfig, mesh: Mesh) -> Setup:
    """Opens the backbone and traces the model.

    Raises:
      ValueError: a part of the config does not fit the backbone.
    """
    buckets = tuple(Bucket(*bucket) for bucket in settings.data.buckets)
    backbone = backbones.open_backbone(
        settings.backbone, max_length=buckets[-1].tokens, processing=settings.processing
    )
    execution = Execution(
        jnp.dtype(settings.execution.dtype), settings.execution.remat, settings.execution.attention
    )
    blueprint = state.draw(
        backbone,
        mesh,
        adapters=settings.lora,
        trainable=settings.trainable,
        frozen_dtype=jnp.dtype(settings.execution.frozen_dtype),
    )
    if settings.export.adapter:
        _check_adapter(backbone, blueprint)
    return Setup(
        settings=settings,
        mesh=mesh,
        backbone=backbone,
        execution=execution,
        blueprint=blueprint,
        encode=step.make_encode(blueprint.graph, execution),
        plan=pair_plan(
            buckets,
            backbone.layout,
            batch_size=settings.batch_size,
            negatives=settings.data.negatives,
            chunk_size=settings.chunk_size,
        ),
        test_plan=Plan(buckets, backbone.layout, settings.chunk_size, settings.evaluation.rows),
    )


def _check_adapter(backbone: backbones.Backbone, blueprint: state.Blueprint) -> None:
    """Better said before a long run than after it."""
    others = sorted(path for path in blueprint.trainable if ".lora_" not in path)
    if others or backbone.adapter:
        why = (
            f"the backbone is an adapter itself, {backbone.adapter}; export it merged first"
            if backbone.adapter
            else f"parameters besides the adapters are trained, for example {others[0]}"
        )
        raise ValueError(f"config.export.adapter=True cannot hold the whole model: {why}.")


def examples(
    rows: Mapping[str, sources.Source], preprocess: pack.Preprocess, plan: Plan
) -> Sequence[Item]:
    """Text, images and both at once, out of the training data, for the export's self-check."""
    items = [Item("A plain text without any image.")]
    for name in sorted(rows)[:8]:
        for index in range(min(len(rows[name]), 100)):
            try:
                example = sources.to_example(name, rows[name][index], str(index))
                pack.prepare(example, preprocess, plan)
            except quarantine.BadExample:
                continue
            items += [example.query, example.positive]
            break
    pictured = [item for item in items if item.image]
    return [*items, *(dataclasses.replace(item, text="<|image_1|>") for item in pictured[:1])]


def write_config(workdir: pathlib.Path, config_dict: ConfigDict) -> None:
    """Leaves the whole config in <workdir>/config.json."""
    if jax.process_index() == 0:
        text = json.dumps(config_dict.to_dict(), indent=2) + "\n"
        (workdir / "config.json").write_text(text)
