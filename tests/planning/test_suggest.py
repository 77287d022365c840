"""Changes that are suggested, of a run whose memory and time follow simple rules."""

import dataclasses

from experiments import embed, stage2
from unime_jax import config, config_reader
from unime_jax.planning import suggest
from unime_jax.planning.estimate import Estimate
from unime_jax.planning.memory import Memory
from unime_jax.planning.report import Entry

# Bytes on a chip.
WEIGHTS, INPUTS, FIXED = 4000, 100, 10
HELD = WEIGHTS + INPUTS
KEPT = {
    "none": 40,
    "dots": 20,
    "attention_up": 20,
    "attention": 20,
    "full": 10,
}  # of a row of a chunk
SECONDS = {"none": 6.0, "dots": 7.0, "attention_up": 8.0, "attention": 8.0, "full": 8.0}


class Run:
    """A run that needs more the larger its chunks are and the more layers keep.

    `impossible`: remat of which there is no program. `compiled`: the tries.
    """

    def __init__(self, settings, capacity, *, fixed=FIXED, seconds=SECONDS, impossible=""):
        self.settings, self.capacity, self.fixed = settings, capacity, fixed
        self.seconds, self.impossible = seconds, impossible
        self.compiled = []

    def attempt(self, topology, settings, *, compiled=True):
        changed = settings.mesh != self.settings.mesh
        mesh = dataclasses.asdict(settings.mesh) if changed else dict(data=1, fsdp=4, tensor=1)
        entry = Entry("run", topology, "", "", {"mesh": mesh})
        weights, kept, remat = WEIGHTS, 0, "full"
        if isinstance(settings, config.TrainConfig):
            execution, remat = settings.execution, settings.execution.remat
            weights //= 2 if execution.frozen_dtype == "int8" else 1
            kept = settings.chunk_size * KEPT[remat] * (1 if execution.recompute else 8)
        if compiled:
            self.compiled.append(settings)
            if remat == self.impossible:
                return dataclasses.replace(entry, problem="no such step")
        temporaries = kept + self.fixed if compiled else None
        peak = weights + INPUTS + kept + self.fixed if compiled else None
        memory = Memory(weights, 0, INPUTS, 0, kept, temporaries, peak, self.capacity)
        seconds = self.seconds[remat]
        time = Estimate(seconds, 0, 0, seconds, seconds, "compute", 0.5, 1.0)
        return dataclasses.replace(entry, memory=memory, estimate=time)

    def says(self, function):
        """A suggestion, once the run was planned as it is."""
        entry = self.attempt("v5e:2x2", self.settings)
        self.compiled.clear()
        return function(self, "v5e:2x2", entry)


def training(chunk_size, remat, *, recompute=True):
    given = stage2.get_config()
    given.chunk_size, given.lora.rank = chunk_size, 8
    given.execution.update(remat=remat, recompute=recompute, frozen_dtype="bfloat16")
    return config_reader.read(config.TrainConfig, given.to_dict())


def embedding():
    return config_reader.read(config.EmbedConfig, embed.get_config().to_dict())


def test_the_largest_chunks_that_should_fit_by_proportion_are_tried_first():
    for room, sizes in ((16 * 10 + FIXED, [16]), (16 * 10 + 4, [16, 8])):  # FIXED does not shrink
        run = Run(training(64, "full"), HELD + room)
        said = f"fits with --config.chunk_size={sizes[-1]}: 0.00 GB a chip, compiled"
        assert run.says(suggest.suggest) == said
        assert [settings.chunk_size for settings in run.compiled] == sizes

    # What fits is said with all flags that led there
    run = Run(training(16, "none"), HELD - WEIGHTS // 2 + 60)
    flags = "chunk_size=4 --config.execution.remat=full --config.execution.frozen_dtype=int8"
    assert run.says(suggest.suggest).startswith(f"fits with --config.{flags}: ")

    # Each change comes with those before it and of an embedding job the mesh alone. Nothing
    # fits: chunks could not be small enough, so they are as small as the mesh allows.
    run = Run(training(16, "none", recompute=False), WEIGHTS // 2)
    said = run.says(suggest.suggest)
    tries = [
        (s.execution.recompute, s.chunk_size, s.execution.remat, s.execution.frozen_dtype)
        for s in run.compiled
    ]
    assert tries == [
        (True, 16, "none", "bfloat16"),
        (True, 4, "dots", "bfloat16"),
        (True, 4, "full", "bfloat16"),
        (True, 4, "full", "int8"),
        (True, 4, "full", "int8"),
        (True, 4, "full", "int8"),
    ]
    meshes = [dataclasses.asdict(settings.mesh) for settings in run.compiled[4:]]
    assert meshes == [{"data": 1, "fsdp": 4 // n, "tensor": n} for n in (2, 4)]
    assert said.startswith("nothing fits of 6 changes that were compiled; the least was 0.00 GB")

    # No more than six changes are compiled. Seven sizes of chunks should fit by proportion, and do
    # not.
    run = Run(training(2**14, "full"), HELD + 2999, fixed=3000)
    assert "nothing fits of 6 changes" in run.says(suggest.suggest)
    assert len(run.compiled) == suggest.MOST == 6

    # Settings that cannot run are no tries
    run = Run(training(16, "none"), WEIGHTS // 2, impossible="dots")
    assert "nothing fits of 4 changes" in run.says(suggest.suggest)
    assert len(run.compiled) == 5

    # An embedding job can change its mesh alone
    run = Run(embedding(), 1000)
    assert "nothing fits of 2 changes" in run.says(suggest.suggest)
    assert [settings.mesh.tensor for settings in run.compiled] == [2, 4]
    assert run.says(suggest.faster) == ""


def test_layers_that_recompute_less_are_tried_where_there_is_room_by_tracing():
    """Up to `FULL` of the memory. What would not fit is not compiled."""
    for room, remat in ((160, "none"), (159, "dots"), (80, "dots"), (79, "")):
        run = Run(training(4, "full"), (HELD + FIXED + room) / suggest.FULL + 1e-6)
        said = run.says(suggest.faster)
        assert [settings.execution.remat for settings in run.compiled] == [remat][: len(remat)]
        if remat:
            assert said.startswith(f"has room for --config.execution.remat={remat}: "), room
            assert f"{SECONDS[remat]:.3g} s a step instead of 8 by the estimate" in said
        else:
            assert said == ""

    # A gain below a twentieth is none
    close = {"none": 7.7, "dots": 7.5, "full": 8.0}
    run = Run(training(4, "full"), 1e6, seconds=close)
    assert run.says(suggest.faster).startswith("has room for --config.execution.remat=dots: 7.5 s")
    assert [settings.execution.remat for settings in run.compiled] == ["none", "dots"]
