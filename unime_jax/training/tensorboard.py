"""Event files of TensorBoard: scalars of steps, and those of evaluations."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import logging

from unime_jax import files
from unime_jax.evaluation import view_scores
from unime_jax.operations.growing_files import GrowingFolder

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event


class TensorBoard:
    """Scalars in TensorBoard's format, written at once; into a bucket now and then.

    tensorboardX's own writer has a thread, which a full disk ends, and then waits for it forever.
    """

    def __init__(self, folder: files.Path, first_step: int) -> None:
        # Here, as torch comes along where it is installed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._growing = GrowingFolder(folder)
        if folder.exists() and not folder.is_dir():
            files.set_aside(folder, "not a folder")
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(self._growing.local / "events"))
        # Readers drop what an earlier process wrote of this step and later ones.
        self._add(Event(step=first_step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=first_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._add(Event(step=step, summary=scalar(name, value)))
        self._file.flush()
        self._growing.changed()

    def sync(self) -> None:
        self._file.flush()
        self._growing.sync()

    def close(self) -> None:
        self._file.close()
        self._growing.sync()

    def _add(self, event: "Event") -> None:
        event.wall_time = time.time()
        self._file.write_event(event)


def write_evaluation(workdir: files.Path, scores: Mapping[int, Mapping[str, Any]]) -> None:
    """Scores by step as scalars in <workdir>/tensorboard/evaluation, in place of earlier ones.

    Groups such as "datasets" are a part of the tag. To TensorBoard it is a run of its own, whose
    readers would otherwise take the events of training at its steps for replaced ones.
    """
    folder = workdir / "tensorboard" / "evaluation"
    try:
        files.remove_tree(folder)
        folder.mkdir(parents=True)
        board = TensorBoard(folder, 0)
        for step in sorted(scores):
            board.write(step, dict(flat_scores(scores[step])))
        board.close()
    except OSError as error:  # a run does not end for its statistics
        logging.warning("%s cannot be written: %s", folder, error)


def flat_scores(
    scores: Mapping[str, Any], prefix: str = "evaluation"
) -> Iterator[tuple[str, float]]:
    """Numbers by tag, "evaluation/datasets/<name>" for example; no intervals or words.

    Of views of the vectors only the headline numbers.
    """
    for name, value in scores.items():
        if name in ("intervals", "missing", "visdoc_missing", "instructions", "dimension"):
            continue
        if name == "views":
            for line in view_scores.lines(scores)[1:]:
                yield from flat_scores(line.numbers, f"{prefix}/views/{line.name}")
            continue
        if isinstance(value, Mapping):
            yield from flat_scores(value, f"{prefix}/{name}")
        elif value is not None:
            yield f"{prefix}/{name}", float(value)
