"""Rows of a benchmark case for PyTorch: chunks of one length, as transformers' models take them.

Images are those of LLaVA-OneVision, Qwen2-VL and Qwen3-VL.
"""

import json
import pathlib

import numpy as np
import torch

QWEN = ("qwen2_vl", "qwen3_vl")  # values of model_type in config.json


class UnsupportedError(Exception):
    """Work that the peers do not do."""


class Rows:
    """The rows of a case on the device, and chunks of rows of one length and form."""

    def __init__(self, request: dict, device: torch.device, config):
        stored = np.load(request["rows"])
        self.lengths, self.tiles = stored["lengths"], stored["tiles"]
        self.image = request["image"]
        self.family = config.model_type
        if self.tiles.any() and self.family not in ("llava_onevision", *QWEN):
            raise UnsupportedError(f"images of {self.family} are not measured in PyTorch")
        tokens = np.array(stored["tokens"], np.int64)
        if self.tiles.any():
            tokens[stored["of_image"]] = config.image_token_id
        ends = np.cumsum(self.lengths)[:-1]
        self.tokens = np.split(tokens, ends)
        self.of_image = np.split(stored["of_image"], ends)
        self.positions = np.split(stored["positions"].astype(np.int64), ends)
        ends = np.cumsum(self.tiles)[:-1]
        self.patches = np.split(stored["patches"], ends)
        self.places = np.split(stored["patch_position"], ends) if self.family in QWEN else []
        self.device, self.config = device, config
        if self.tiles.any() and self.family in QWEN:
            self.mean, self.std = _statistics(pathlib.Path(request["model"]))
        self._chunks: dict = {}

    def chunks(self, budget: int) -> list[tuple[list[int], dict]]:
        """Numbers of the rows of each chunk, and what the model is called with."""
        if budget not in self._chunks:
            forms: dict = {}
            for number, form in enumerate(zip(self.lengths.tolist(), self.tiles.tolist())):
                forms.setdefault(form, []).append(number)
            self._chunks = {}  # of the last budget alone: inputs are on the device
            self._chunks[budget] = [
                (numbers[i : i + size], self._inputs(numbers[i : i + size]))
                for (length, _), numbers in forms.items()
                for size in [max(1, budget // length)]
                for i in range(0, len(numbers), size)
            ]
        return self._chunks[budget]

    def _inputs(self, numbers: list[int]) -> dict:
        tokens = np.stack([self.tokens[n] for n in numbers])
        inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        if self.family in QWEN:
            positions = np.stack([self.positions[n] for n in numbers])
            inputs["position_ids"] = positions.transpose(2, 0, 1)  # time, row and column first
        if self.tiles[numbers[0]]:
            inputs |= self._qwen(numbers) if self.family in QWEN else self._llava(numbers)
        return {name: torch.from_numpy(x).to(self.device) for name, x in inputs.items()}

    def _llava(self, numbers: list[int]) -> dict[str, np.ndarray]:
        """Tiles of normalised pixels from bytes of patches, [rows, tiles, 3, side, side]."""
        vision = self.config.vision_config
        grid, patch = vision.image_size // vision.patch_size, vision.patch_size
        tiles = np.stack([self.patches[n] for n in numbers])
        tiles = tiles.reshape(len(numbers), -1, grid, grid, 3, patch, patch)
        tiles = tiles.transpose(0, 1, 4, 2, 5, 3, 6)
        tiles = tiles.reshape(len(numbers), -1, 3, grid * patch, grid * patch)
        pixels = (tiles.astype(np.float32) / 255 - 0.5) / 0.5
        return {"pixel_values": pixels, "image_sizes": np.array([self.image] * len(numbers))}

    def _qwen(self, numbers: list[int]) -> dict[str, np.ndarray]:
        """Normalised patches of the image of each row, [patches, F], and their grids.

        Each patch has its pixels once for every frame that it spans, after their channel.
        """
        patches, grids = [], []
        for n in numbers:
            places = self.places[n].reshape(-1, 3)
            filled = places[:, 0] >= 0
            if places[:, 0].max() > 0:
                raise UnsupportedError("rows of several images are not measured in PyTorch")
            grids.append((1, *(places[filled, 1:].max(axis=0) + 1)))
            patches.append(self.patches[n].reshape(len(places), 3, 1, -1)[filled])
        pixels = np.concatenate(patches).astype(np.float32) / 255
        pixels = (pixels - self.mean) / self.std
        pixels = np.repeat(pixels, self.config.vision_config.temporal_patch_size, axis=2)
        return {
            "pixel_values": pixels.reshape(len(pixels), -1),
            "image_grid_thw": np.array(grids, np.int64),
            "mm_token_type_ids": np.stack([self.of_image[n] for n in numbers]).astype(np.int64),
        }


def _statistics(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by channel, float32 [3, 1, 1], of a model folder's images."""
    file = folder / "preprocessor_config.json"
    values = json.loads(file.read_text())
    mean, std = (np.array(values[f"image_{x}"], np.float32) for x in ("mean", "std"))
    return mean[:, None, None], std[:, None, None]
