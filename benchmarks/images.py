"""Host work of images: decoding, resizing and cutting patches, beside torchvision; and workers.

    python -m benchmarks.images                        # CPU time of one core, by recipe canvas
    python -m benchmarks.images --workers=1,2          # also pairs a second of the loader
    python -m benchmarks.images --images=photos        # a folder of JPEG files in their place

The first part counts CPU time (user and system), ours and torchvision's in turn, each on one
thread; both decode by Pillow, as torchvision's own decoder is no part of its wheels on CPUs. The
second is of wall time, so it wants idle cores: the loader with LLaVA-OneVision-7B's tokenizer and
tiles. Results also go to --json.
"""

import argparse
import functools
import io
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from benchmarks import peers
from unime_jax import backbones
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.phi3_v import hd_transform
from unime_jax.backbones.qwen2_vl import dynamic_resolution
from unime_jax.data import images
from unime_jax.data.loader import make_loader
from unime_jax.data.settings import Bucket, Processing
from unime_jax.data.shapes import pair_shapes

MODEL = "experiments/plans/models/llava_onevision_7b"
LOW = ((384, 384),)
ANYRES = ((384, 384), (384, 768), (768, 384), (768, 768))
BATCH = 64  # pairs of the loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="", help="folder of JPEG files; else 12 are drawn")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--workers", default="", help="numbers of processes, such as 1,2")
    parser.add_argument("--batches", type=int, default=6, help="of the loader, for each number")
    parser.add_argument("--json", default="", help="file for the figures")
    given = parser.parse_args()
    files = [path.read_bytes() for path in sorted(pathlib.Path(given.images).glob("*.jp*g"))]
    files = files if given.images else drawn()
    figures: dict = {"machine": f"{platform.processor()} {os.cpu_count()} cores"}
    figures["cpu_ms"] = canvases(files, given.repetitions)
    print(
        "| canvas | decode, ms | ours, ms | torchvision, ms | with decoding, ours / torchvision |"
    )
    print("|---|---|---|---|---|")
    for name, (decode, ours, theirs) in figures["cpu_ms"].items():
        ratio = (decode + ours) / (decode + theirs)
        print(f"| {name} | {decode:.2f} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |")
    if given.workers:
        figures["pairs_per_second"] = {}
        print("\n| workers | pairs/s |\n|---|---|")
        for workers in map(int, given.workers.split(",")):
            rate = loaded(files, workers, given.batches)
            figures["pairs_per_second"][workers] = rate
            print(f"| {workers} | {rate:.1f} |", flush=True)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(figures, indent=2) + "\n")


def drawn() -> list[bytes]:
    """JPEG files of 640 x 480 and 480 x 640 pixels: smooth areas with fine noise."""
    generator = np.random.default_rng(0)
    files = []
    for number in range(12):
        width, height = (640, 480) if number % 3 else (480, 640)
        shape = height // 16, width // 16, 3
        smooth = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + generator.normal(0, 6, pixels.shape).astype(np.int16)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        files.append(file.getvalue())
    return files


def canvases(files: Sequence[bytes], repetitions: int) -> dict[str, tuple[float, float, float]]:
    """By canvas, CPU milliseconds an image: decoding, our patches of it, torchvision's."""
    peers.import_torchvision()
    import torch
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)
    decoded = [images.decode(data) for data in files]
    # uint8 tensors, as torchvision's image processors resize them.
    tensors = [functional.pil_to_tensor(image) for image in decoded]

    def resize(x, height: int, width: int, interpolation: int = 3):
        return functional.resize(x, [height, width], interpolation=interpolation, antialias=True)

    def cut(tiles, patch: int):
        count, _, height, width = tiles.shape
        rows, columns = height // patch, width // patch
        tiles = tiles[..., : rows * patch, : columns * patch]
        tiles = tiles.reshape(count, 3, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(count, rows * columns, -1)

    def split(canvas, tile: int):
        _, height, width = canvas.shape
        tiles = canvas.reshape(3, height // tile, tile, width // tile, tile)
        return tiles.permute(1, 3, 0, 2, 4).reshape(-1, 3, tile, tile)

    def their_llava(x, pinpoints, tile: int):
        height, width = anyres.select_pinpoint(*x.shape[1:], pinpoints)
        inner_height, inner_width = anyres.content_size(*x.shape[1:], (height, width))
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        around = [left, top, width - inner_width - left, height - inner_height - top]
        canvas = functional.pad(resize(x, inner_height, inner_width), around)
        return cut(torch.cat([resize(x, tile, tile)[None], split(canvas, tile)]), 14)

    def our_llava(image, pinpoints, tile: int):
        return anyres.cut_patches(anyres.cut_tiles(image, pinpoints, tile, 3), 14)

    def grid_of(height: int, width: int) -> tuple[int, int]:
        sizes = dynamic_resolution.smart_resize(height, width, 28, 56 * 56, 672 * 672)
        return sizes[0] // 14, sizes[1] // 14

    def their_qwen(x):
        rows, columns = grid_of(*x.shape[1:])
        resized = resize(x, rows * 14, columns * 14)
        patches = resized.reshape(3, rows // 2, 2, 14, columns // 2, 2, 14)
        return patches.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, -1)

    def our_qwen(image):
        grid = grid_of(image.height, image.width)
        return dynamic_resolution.cut_patches(image, grid, patch=14, merge=2, resample=3)

    def their_phi(x):
        (rows, columns), (height, width) = hd_transform.canvas_of(x.shape[1:], crops=4, tile=336)
        below, right = rows * 336 - height, columns * 336 - width
        around = [right // 2, below // 2, right - right // 2, below - below // 2]
        return cut(split(functional.pad(resize(x, height, width, 2), around, fill=255), 336), 14)

    def our_phi(image):
        canvas = hd_transform.canvas_of((image.height, image.width), crops=4, tile=336)
        return anyres.cut_patches(hd_transform.cut_crops(image, canvas, 336), 14)

    def their_clip(x):
        height, width = x.shape[1:]
        scale = 336 / min(height, width)
        x = resize(x, int(height * scale), int(width * scale))
        return cut(functional.center_crop(x, [336, 336])[None], 14)

    def our_clip(image):
        scale = 336 / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 336) // 2, (height - 336) // 2
        image = image.crop((left, top, left + 336, top + 336))
        return anyres.cut_patches(np.asarray(image)[None], 14)

    cases = {
        "LLaVA-OneVision, 384": (
            lambda image: our_llava(image, LOW, 384),
            lambda x: their_llava(x, LOW, 384),
        ),
        "LLaVA-OneVision, 768 (AnyRes)": (
            lambda image: our_llava(image, ANYRES, 384),
            lambda x: their_llava(x, ANYRES, 384),
        ),
        "LLaVA-1.6, 336": (
            lambda image: our_llava(image, ((336, 336),), 336),
            lambda x: their_llava(x, ((336, 336),), 336),
        ),
        "Qwen2-VL, up to 672 x 672": (our_qwen, their_qwen),
        "Phi-3.5-Vision, 4 crops": (our_phi, their_phi),
        "CLIP, 336": (our_clip, their_clip),
    }
    result = {}
    for name, (ours, theirs) in cases.items():
        first = np.asarray(ours(decoded[0])), theirs(tensors[0]).numpy()
        assert first[0].shape == first[1].shape, (name, first[0].shape, first[1].shape)
        seconds = alternated(
            [
                lambda: [images.decode(data) for data in files],
                lambda ours=ours: [ours(image) for image in decoded],
                lambda theirs=theirs: [theirs(x) for x in tensors],
            ],
            repetitions,
        )
        decode, mine, other = (1000 * each / len(files) for each in seconds)
        result[name] = decode, mine, other
    return result


def alternated(calls: Sequence[Callable[[], object]], repetitions: int) -> list[float]:
    """Median CPU seconds of each call, one after another in every round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repetitions + 1):
        for call, taken in zip(calls, seconds, strict=True):
            started = time.process_time()
            call()
            taken.append(time.process_time() - started)
    return [statistics.median(taken[1:]) for taken in seconds]


def loaded(files: Sequence[bytes], workers: int, batches: int) -> float:
    """Pairs a second of the loader, an image and a text each, after its first two batches."""
    processing = Processing(prompt="chat", pinpoints=LOW)
    backbone = backbones.open_backbone(MODEL, max_length=1792, processing=processing, weights=False)
    rows = [
        {
            "qry": "<|image_1|>\nFind a caption that describes the image.",
            "qry_image": files[number % len(files)],
            "qry_image_path": f"{number}.jpg",
            "pos_text": f"picture {number} of a street with people, trees and two parked cars",
        }
        for number in range(BATCH * (batches + 8))
    ]
    buckets = Bucket(128, 0), Bucket(1792, 2)
    loader = make_loader(
        {"pairs": rows},
        {"pairs": 1.0},
        batch_size=BATCH,
        source_run=0,
        seed=0,
        preprocess=backbone.preprocess,
        shapes=pair_shapes(buckets, backbone.layout, batch_size=BATCH, chunk_size=16),
        workers=workers,
    )
    for _ in range(2):
        next(loader)
    started = time.perf_counter()
    for _ in range(batches):
        next(loader)
    seconds = time.perf_counter() - started
    getattr(loader, "close", functools.partial(int))()
    return BATCH * batches / seconds


if __name__ == "__main__":
    main()
