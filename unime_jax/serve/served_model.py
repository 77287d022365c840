"""A model as the server runs it: user inputs to rows, rows to embeddings, and what it compiles."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
from jaxtyping import Float32

from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.batch import Row
from unime_jax.data import inference_shapes
from unime_jax.data.inference_batches import sized
from unime_jax.data.shapes import BatchShapes
from unime_jax.data.truncation import kept
from unime_jax.data.user_inputs import UserInput, to_item
from unime_jax.embedder import Embedder
from unime_jax.inference.encode import encode_rows
from unime_jax.inference.encoder_programs import compile_ahead
from unime_jax.operations.programs import THREADS

# Called with how many programs are compiled, and of how many.
Progress = Callable[[int, int], None]


class ServedModel:
    """An `Embedder` in parts, as rows are prepared by many threads and encoded by one.

    Attributes:
      dimension: D of embeddings where a request asks for none.
      width: the largest D.
      max_length: the most tokens of an item.
      embeds_images, embeds_videos: whether items may have them.
    """

    def __init__(self, embedder: Embedder, batch_sizes: Sequence[int]):
        self._embedder = embedder
        self._sizes = tuple(batch_sizes)
        self._shapes = {size: embedder.shapes(size) for size in self._sizes}
        self.dimension = embedder.dimension
        self.width = embedder.backbone.dimension
        self.max_length = embedder.max_length
        layout = embedder.backbone.layout
        self.embeds_images = bool(layout.patches)
        self.embeds_videos = self.embeds_images and layout.takes_clips

    def prompt(self, text: str | None, name: str | None) -> str:
        """The prompt of a request, as of `Embedder.encode`; ValueError: there is no such one."""
        embedder = self._embedder
        return Defaults(embedder.prompts, embedder.default_prompt_name).prompt(text, name)

    def kept(self, dimensions: int | None) -> int:
        """D of a request's embeddings; ValueError: the model has fewer."""
        own = self._embedder.truncate_dim
        return kept(self.width, own if dimensions is None else dimensions)

    def row(self, item: UserInput, prompt: str, suffix: str) -> Row:
        """One item, preprocessed; TypeError, ValueError: it cannot be embedded."""
        return self._embedder.backbone.preprocess(to_item(item, prompt, suffix))

    def encode(self, rows: Sequence[Row]) -> Float32[np.ndarray, "n D"]:
        """Unit-norm embeddings; NonFiniteError names rows. Of one thread at a time."""
        largest = self._sizes[-1]
        size = next((size for size in self._sizes if len(rows) <= size), largest)
        shapes = self._shapes[size]
        prepared = (sized(number, row, shapes) for number, row in enumerate(rows))
        (encoded,) = encode_rows(
            self._embedder.model, prepared, [range(len(rows))], shapes, each=len(rows)
        )
        return encoded.vectors

    def programs(self, *, videos: bool) -> list[BatchShapes]:
        """Shapes of all batches that usual items need, the smallest first.

        Items of unusually many images or tiles have shapes beside them, which compile when they
        come; so have items with videos, without `videos` or where those have many words, too.
        """
        layout = self._embedder.backbone.layout
        rungs = [(rung, False) for rung in inference_shapes.text_rungs(layout, self.max_length)]
        if self.embeds_images:
            images = inference_shapes.image_rungs(layout, self.max_length)
            rungs += [(rung, False) for rung in images]
        if videos and self.embeds_videos:
            clips = inference_shapes.clip_rungs(layout, self.max_length)
            rungs += [(rung, True) for rung in clips]
        shapes = {
            self._shapes[size](bucket.tokens, bucket.tiles, clips): None
            for bucket, clips in rungs
            for size in self._sizes
        }
        return sorted(shapes, key=lambda s: (s.rows, s.buckets[-1].tokens, s.buckets[-1].tiles))

    def compile(self, programs: Sequence[BatchShapes], progress: Progress) -> None:
        """Compiles programs, several at a time."""
        with ThreadPoolExecutor(THREADS, "compiling") as pool:
            tasks = [pool.submit(compile_ahead, self._embedder.model, one) for one in programs]
            try:
                for done, task in enumerate(as_completed(tasks), 1):
                    task.result()
                    progress(done, len(tasks))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
