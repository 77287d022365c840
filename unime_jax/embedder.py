"""Embeddings of texts and images by a model folder or hub id, without configs or data sets."""

import functools
import os
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from unime_jax.data.quantized_vectors import Precision, quantized
from unime_jax.data.truncation import truncated, unit_rows
from unime_jax.data.user_inputs import (
    IMAGE_SUFFIX,
    TEXT_SUFFIX,
    PromptedInput,
    UserInput,
    split_modalities,
    to_item,
)
from unime_jax.data.user_lists import (
    Embeddable,
    instructed,
    is_single,
    listed,
    naming,
    sum_of_parts,
)
from unime_jax.inference.opened_model import OpenedModel

# Float32 or float16, or codes of `precision`.
Embeddings: TypeAlias = (
    Float[np.ndarray, "*n D"] | Int8[np.ndarray, "*n _"] | UInt8[np.ndarray, "*n _"]
)


class Embedder(OpenedModel):
    """A model, its preprocessing and its devices; attributes are those of `OpenedModel`.

    embedder = Embedder.from_pretrained("runs/stage2/hf")
    vectors = embedder.encode(["a red circle", {"image": "circle.png"}])
    embedder.similarity(vectors[:1], vectors[1:])
    """

    def encode(
        self,
        items: Embeddable | Iterable[Embeddable],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        suffix: str = "",
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Float[np.ndarray, "2 D"] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Embeddings:
        """Unit-norm embeddings in the items' order; of a single item, its vector [D].

        An item is a text, a PIL image, a dict of "text", "image" and "video" (of which some may be
        left out), or the messages of a chat (`data.chat_messages`), whose system message takes the
        place of the call's prompt. An image is a path, the bytes of a file, a PIL image, a uint8
        array [height, width, 3], a data URL or, with `image_urls`, an http or https URL; a list of
        them is several images. A video is a path of a file or of a folder of pictures, bytes, a
        URL, a uint8 array [frames, height, width, 3], or {"frames": ..., "fps": ...}; see
        docs/video.md. `prompt` + text + `suffix` is what the model's template gets; images go
        where prompt or text have markers `<|image_1|>`, else in front of it
        (`preprocessing.prompts.Prompt`). A str is a text, always: where it names an image, for
        which sentence-transformers takes it, there is a warning; {"image": path} and
        {"text": text} mean the same in both.

        Items run in batches of one shape: lengths are rounded up to a few, each of which compiles
        once. Texts beyond `max_length` are cut before the suffix, with one warning a call.

        Args:
          prompt: what goes directly before every text; "": nothing; None: as `prompt_name` says.
          prompt_name: of one of `prompts`; None: the folder's default prompt, mostly none.
          truncate_dim: how many numbers of an embedding are kept, before it is scaled to length 1
            (sentence-transformers scales before, the cosines are the same); None: `truncate_dim`
            of this object.
          precision: of the numbers that are returned, see `data.quantized_vectors`; the model is
            run as it is in any case.
          ranges: of int8 and uint8, see `quantized_vectors.ranges_of`; None: those of this call's
            own embeddings, with a warning.
          batch_size: items of a batch, which bounds memory. Keep to few values, as each compiles
            anew. In float32 an embedding depends on its item alone, but for the last bits. In
            bfloat16 and int8 it depends a little on what it is batched with: each padded length
            and batch size is a program of its own, which may round elsewhere (cosine above 0.999).

        Raises:
          TypeError, ValueError: an item is not as above, media cannot be read or fetched, or an
            image alone takes more than `max_length` tokens, a token has no embedding, or the
            result is not finite. The message starts with the item's index. Or there is no prompt
            of that name, no such dimension or precision.
        """
        dimension = self._kept(truncate_dim)
        before, urls = self._prompt(prompt, prompt_name), self.image_urls
        listing = listed(items, embeds_images=bool(self._layout.patches), urls=urls)
        work = [
            PromptedInput(index, item, before if said is None else said, suffix, urls)
            for index, (said, item) in enumerate(listing)
        ]
        vectors = truncated(self._encode(work, batch_size, show_progress_bar), dimension)
        codes = quantized(vectors, precision, ranges=ranges)
        return codes[0] if is_single(items) else codes

    def encode_query(
        self,
        items: Embeddable | Iterable[Embeddable],
        *,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Float[np.ndarray, "2 D"] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Embeddings:
        """As `encode`, with the folder's prompt "query", or its default prompt if it has none."""
        return self.encode(
            items,
            prompt_name=self._first_prompt("query"),
            truncate_dim=truncate_dim,
            precision=precision,
            ranges=ranges,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    def encode_document(
        self,
        items: Embeddable | Iterable[Embeddable],
        *,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Float[np.ndarray, "2 D"] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Embeddings:
        """As `encode`, with the folder's prompt "document", "passage" or "corpus".

        The first that it has counts; without any it is the default prompt. These are the names that
        sentence-transformers looks for.
        """
        return self.encode(
            items,
            prompt_name=self._first_prompt("document", "passage", "corpus"),
            truncate_dim=truncate_dim,
            precision=precision,
            ranges=ranges,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    @staticmethod
    def similarity(
        a: Float[np.ndarray, "*n D"], b: Float[np.ndarray, "*m D"]
    ) -> Float32[np.ndarray, "n m"]:
        """Cosines of all rows of `a` with all rows of `b`; a row of zeros has cosine 0."""
        return unit_rows("a", a) @ unit_rows("b", b).T

    @staticmethod
    def similarity_pairwise(
        a: Float[np.ndarray, "*n D"], b: Float[np.ndarray, "*n D"]
    ) -> Float32[np.ndarray, " n"]:
        """Cosine of each row of `a` with the row of `b` in the same place.

        Raises:
          ValueError: there are not as many.
        """
        left, right = unit_rows("a", a), unit_rows("b", b)
        if left.shape != right.shape:
            raise ValueError(f"a has shape {left.shape}, b {right.shape}; rows go by pairs")
        return np.einsum("nd,nd->n", left, right)

    def encode_sum(
        self,
        items: Embeddable | Iterable[Embeddable],
        *,
        image_suffix: str = IMAGE_SUFFIX,
        text_suffix: str = TEXT_SUFFIX,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Float[np.ndarray, "2 D"] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Embeddings:
        """As `encode`, with an item's image and text embedded apart, added, and scaled to length 1.

        This is how UniME embeds both at once after its first stage, without training on such items
        (section 3.2.2, figure 2b). An item of a single modality has the embedding of that one.
        `image_suffix` follows the images, `text_suffix` the text, which is stripped and loses its
        markers. With other suffixes this serves any model. The folder's prompts are not used, so
        that messages have no system message here.

        Raises:
          TypeError, ValueError: as `encode`.
        """
        dimension = self._kept(truncate_dim)
        urls = self.image_urls
        listing = listed(items, embeds_images=bool(self._layout.patches), urls=urls)
        for index, (said, _) in enumerate(listing):
            naming(index, functools.partial(_check_without_instruction, said))
        work = [
            prompted
            for index, (_, item) in enumerate(listing)
            for prompted in split_modalities(index, item, image_suffix, text_suffix, urls)
        ]
        vectors = self._encode(work, batch_size, show_progress_bar)
        sums = truncated(
            sum_of_parts(vectors, [part.number for part in work], len(listing)), dimension
        )
        codes = quantized(sums, precision, ranges=ranges)
        return codes[0] if is_single(items) else codes

    def rendered(
        self,
        item: Embeddable,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        suffix: str = "",
    ) -> str:
        """The text that `encode` tokenizes, with a single image token where an image goes."""
        before = self._prompt(prompt, prompt_name)
        said, plain = instructed(item)
        before = before if said is None else said
        return self._preprocess.prompt.rendered(to_item(plain, before, suffix, self.image_urls))

    def rendered_sum(
        self,
        item: UserInput,
        *,
        image_suffix: str = IMAGE_SUFFIX,
        text_suffix: str = TEXT_SUFFIX,
    ) -> list[str]:
        """The texts that `encode_sum` tokenizes: for the images, then for the text."""
        rendered = self._preprocess.prompt.rendered
        work = split_modalities(0, item, image_suffix, text_suffix, self.image_urls)
        return [rendered(part.item()) for part in work]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes what was opened as a folder that opens here and in the libraries of exports.

        Weights are those of the folder that was opened, in the precision that they have there, an
        adapter merged into them; prompts, length, dimension and processing are those of this
        object. Opened again with the same dtype, it gives the same embeddings to the bit, but for
        the last bits of an adapter's products.

        Raises:
          ValueError: the folder exists, or has no place for the prompts.
        """
        from unime_jax.export import saved_model  # with jinja2 and what checks exports

        saved_model.save(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add model by unime_jax",
    ) -> str:
        """Uploads what `save_pretrained` writes to a model repository; returns the commit's URL.

        On a mesh of several processes the first of them does, and the others return "".

        Args:
          repo_id: "owner/name"; the repository is made if there is none.
          token: of the hub, with the right to write; None: that of `hf auth login` or `HF_TOKEN`.
          private: whether a new repository is private; None: as its owner has set it.
          revision: branch, made if there is none; None: main.

        Raises:
          ValueError: as `save_pretrained`, or the hub refuses; the message says what it says.
        """
        from unime_jax.export import saved_model

        return saved_model.push(
            self,
            repo_id,
            token=token,
            private=private,
            revision=revision,
            commit_message=commit_message,
        )


def _check_without_instruction(said: str | None) -> None:
    if said is not None:
        raise ValueError("it has a system message, and encode_sum uses no prompts: leave it out")
