"""MMEB's instructions: the words around the content of a row, as each protocol publishes them.

VLM2Vec's stand in MMEB-eval's texts themselves; those of Qwen3-VL-Embedding are the same sentences
without image markers, closed by a full stop where no punctuation ends them, and candidates have its
default instruction. Its own model has them in the system turn; here they stand before the content.
"""

import dataclasses
import unicodedata
from collections.abc import Mapping

from unime_jax.evaluation.scores import MMEB_V1

MARKER = "<|image_1|>"
DEFAULT = "Represent the user's input."  # Qwen3-VL-Embedding's for candidates


@dataclasses.dataclass(frozen=True)
class Wording:
    """VLM2Vec's words around the content of a dataset's queries and targets.

    `marked` queries begin with an image marker, in WebQA and EDIS without an image. Targets without
    an instruction are bare texts, those with one begin with a marker.
    """

    query: str
    target: str = ""
    marked: bool = True
    query_end: str = "\n"
    target_end: str = "\n"

    def query_content(self, text: str) -> str:
        """The content of a query's text; ValueError if it is worded otherwise."""
        return _content(self.marked, self.query, text, self.query_end)

    def target_content(self, text: str) -> str:
        """The content of a target's text; ValueError if it is worded otherwise."""
        return _content(True, self.target, text, self.target_end) if self.target else text


def _table() -> dict[str, Wording]:
    image = "Represent the given image."
    crop = "Represent the given cropped image of the object"
    wikipedia = "Represent the given Wikipedia image with related text information:"
    portion = "Select the portion of the image that"
    classification = {
        "Represent the given image for classification": "ImageNet-1K ImageNet-A ImageNet-R",
        "Represent the given news image with the following caption for domain classification:": (
            "N24News"
        ),
        "Represent the given image for binary classification to determine whether it constitutes "
        "hateful speech or not": "HatefulMemes",
        "Identify the object shown in the image": "VOC2007 ObjectNet",
        "Identify the scene shown in the image": "SUN397 Place365",
        "Identify the country depicted in the image": "Country211",
        "Represent the given image with the following question:": "OK-VQA A-OKVQA DocVQA "
        "InfographicsVQA ChartQA Visual7W ScienceQA VizWiz GQA TextVQA",
        "Find an image caption describing the given everyday image.": "MSCOCO_i2t",
        "Find a caption for the news in the given photo.": "VisualNews_i2t",
    }
    table = {n: Wording(query) for query, names in classification.items() for n in names.split()}
    return table | {
        "VisDial": Wording(
            "Represent the given dialogue about an image, which is used for image retrieval:",
            "Represent the given image",
            marked=False,
            query_end="\n\n",
        ),
        "VisualNews_t2i": Wording("Retrieve an image of this news caption.", image, marked=False),
        "MSCOCO_t2i": Wording(
            "Find me an everyday image that matches the given caption:", image, marked=False
        ),
        "Wiki-SS-NQ": Wording(
            "Find the document image that can answer the given query:",
            "Represent the given image",
            marked=False,
        ),
        "CIRR": Wording(
            "Given an image, find a similar everyday image with the described changes:", image
        ),
        "NIGHTS": Wording(
            "Find a day-to-day image that looks similar to the provided image.", image
        ),
        "FashionIQ": Wording("Find an image to match the fashion image and style note:", image),
        "OVEN": Wording(
            "Retrieve a Wikipedia image-description pair that provides evidence for the question of"
            " this image:",
            wikipedia,
        ),
        "WebQA": Wording("Find a Wikipedia image that answers this question:", wikipedia),
        "EDIS": Wording(
            "Find a news image that matches the provided caption:",
            "Represent the given image with related text information:",
        ),
        "MSCOCO": Wording(
            "Crop the image to to isolate the object labeled as",
            crop,
            target_end="",  # sic
        ),
        "RefCOCO": Wording(f"{portion} follows the language expressions.", crop, target_end=""),
        "RefCOCO-Matching": Wording(
            f"{portion} follows the language expressions:",
            f"{portion} follows the language expressions:",
        ),
        "Visual7W-Pointing": Wording(f"{portion} answers the question", crop, target_end=""),
    }


EVALUATION: Mapping[str, Wording] = _table()
# Of MMEB-train's split "original"; the other split paraphrases them.
TRAINING: Mapping[str, Wording] = {
    name.replace("ImageNet-1K", "ImageNet_1K"): EVALUATION[name]
    for name, (_, split) in MMEB_V1.items()
    if split == "IND"
} | {
    "MSCOCO": dataclasses.replace(
        EVALUATION["MSCOCO"],
        query="Select the portion of the image that isolates the object labeled as",
    ),
}


def qwen_query(wording: Wording, content: str, *, image: bool) -> str:
    """A query's text in Qwen3-VL-Embedding's words; `image` says whether it has one."""
    instruction = wording.query
    if not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    return _worded(image, instruction, content, "\n")


def qwen_target(content: str, *, image: bool) -> str:
    """A candidate's text in Qwen3-VL-Embedding's words; `image` says whether it has one."""
    return _worded(image, DEFAULT, content.strip() if image else content, "\n")


def _worded(marked: bool, instruction: str, content: str, end: str) -> str:
    marker = f"{MARKER}\n" if marked else ""
    return f"{marker}{instruction}{' ' if content else ''}{content}{end}"


def _content(marked: bool, instruction: str, text: str, end: str) -> str:
    """The content of a text; ValueError if it is not worded so."""
    head = _worded(marked, instruction, "", "")
    content = text.removeprefix(head).removesuffix(end)
    if f"{head}{content}{end}" != text or content[:1] not in ("", " "):
        raise ValueError(
            f"the text {text[:200]!r} is not in VLM2Vec's words, which begin with {head!r} and end"
            f" with {end!r}; config.evaluation.instructions='data' takes texts as they are"
        )
    return content[1:]
