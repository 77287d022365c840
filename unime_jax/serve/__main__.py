"""The command of the server: flags to a model, an app and a process.

    python -m unime_jax.serve --model=runs/stage2/hf --port=8000
    python -m unime_jax.serve --model=BAAI/bge-base-en-v1.5 --api_key_file=key.txt --host=0.0.0.0

docs/serving.md says what it answers.
"""

import importlib.util
import os
import pathlib
import sys
import time
from typing import Any

from absl import app, flags, logging

from unime_jax.data.image_urls import ImageUrls
from unime_jax.operations import exits

_MODEL = flags.DEFINE_string("model", None, "A model folder or hub id, as of Embedder.")
_NAME = flags.DEFINE_string("name", "", "The model's name to clients; by default --model.")
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub repository.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16", "int8"], "Of weights and activations."
)
_MAX_LENGTH = flags.DEFINE_integer("max_length", None, "The most tokens of an item.")
_TRUNCATE_DIM = flags.DEFINE_integer("truncate_dim", None, "Numbers of an embedding.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: every one.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at.")
_API_KEY_FILE = flags.DEFINE_string(
    "api_key_file",
    "",
    "A file with the key that clients must send; by default UNIME_JAX_API_KEY, and none without.",
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["1", "8", "32"], "Items of a batch; each size compiles its own programs."
)
_MAX_WAIT_MS = flags.DEFINE_float(
    "max_wait_ms", 5, "That an item waits for others where the model is idle."
)
_MAX_WAITING = flags.DEFINE_integer("max_waiting", 4096, "Items accepted and not answered.")
_MAX_ITEMS = flags.DEFINE_integer("max_items", 2048, "Items of a request.")
_MAX_IMAGES = flags.DEFINE_integer("max_images", 16, "Images of an item.")
_MAX_VIDEOS = flags.DEFINE_integer("max_videos", 2, "Videos of an item.")
_MAX_BODY_MB = flags.DEFINE_integer("max_body_mb", 32, "MiB of a request's body.")
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels", 16_000_000, "Pixels of an image or frame."
)
_IMAGE_URLS = flags.DEFINE_enum(
    "image_urls",
    "none",
    ["none", "public", "any"],
    "Hosts from which images are fetched by http(s) URLs; any: also of the own network.",
)
_IMAGE_HOSTS = flags.DEFINE_list("image_hosts", [], "The only ones of them; by default all.")
_IMAGE_TIMEOUT_S = flags.DEFINE_float(
    "image_timeout_s", 5, "For an image by URL; four times as long for a video."
)
_WARM_UP = flags.DEFINE_bool("warm_up", True, "Compile before the first request is accepted.")
_WARM_UP_VIDEOS = flags.DEFINE_bool("warm_up_videos", False, "Compile for videos, too.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _MODEL.value:
        raise app.UsageError("--model=<folder or hub id> is required")
    missing = [name for name in ("starlette", "uvicorn") if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(
            f"error: {' and '.join(missing)} are not installed: pip install 'unime_jax[serve]'"
        )
    from unime_jax.embedder import Embedder
    from unime_jax.serve.app import make_app
    from unime_jax.serve.served_model import ServedModel
    from unime_jax.serve.server import bound, make_server
    from unime_jax.serve.service import Service, Start
    from unime_jax.serve.settings import Batching, Limits

    limits = Limits(
        body_bytes=_MAX_BODY_MB.value * 2**20,
        items=_MAX_ITEMS.value,
        images=_MAX_IMAGES.value,
        videos=_MAX_VIDEOS.value,
        image_pixels=_MAX_IMAGE_PIXELS.value,
        waiting=_MAX_WAITING.value,
    )
    batching = Batching(_batch_sizes(), _MAX_WAIT_MS.value / 1000)
    key = _api_key()
    listener = bound(_HOST.value, _PORT.value)  # a port that is taken shows before a model is read
    dtype: Any = _DTYPE.value
    embedder = Embedder.from_pretrained(
        _MODEL.value,
        dtype=dtype,
        max_length=_MAX_LENGTH.value,
        revision=_REVISION.value,
        truncate_dim=_TRUNCATE_DIM.value,
    )
    model = ServedModel(embedder, batching.sizes)
    service = Service(model, _NAME.value or _MODEL.value, limits, batching, _image_urls())
    server = make_server(make_app(service, api_key=key, created=int(time.time())), service)

    def warm_up(start: Start) -> None:
        programs = model.programs(videos=_WARM_UP_VIDEOS.value) if _WARM_UP.value else []
        start.programs = len(programs)

        def progress(done: int, total: int) -> None:
            start.done = done
            logging.info("%d of %d programs are compiled", done, total)

        model.compile(programs, progress)
        model.encode([model.row("a first text", "", "")])

    failures: list[bool] = []

    def failed() -> None:
        failures.append(True)
        server.should_exit = True

    service.begin(warm_up, failed)
    logging.info("listening at http://%s:%d", _HOST.value, listener.getsockname()[1])
    server.run([listener])
    left = service.places.taken
    logging.info(
        "stopped; answers by status: %s; %s",
        service.metrics.statuses() or "none",
        f"{left} accepted items are lost" if left else "nothing accepted is lost",
    )
    logging.flush()
    exits.exit_now(
        1 if failures or left else 0
    )  # a thread may be compiling, which cannot be stopped


def _batch_sizes() -> tuple[int, ...]:
    if not all(text.strip().isdigit() for text in _BATCH_SIZES.value):
        raise ValueError(f"batch_sizes are {','.join(_BATCH_SIZES.value)}; write 1,8,32")
    return tuple(map(int, _BATCH_SIZES.value))


def _image_urls() -> ImageUrls | None:
    if _IMAGE_URLS.value == "none":
        return None
    return ImageUrls(
        timeout=_IMAGE_TIMEOUT_S.value,
        private_addresses=_IMAGE_URLS.value == "any",
        hosts=tuple(_IMAGE_HOSTS.value) or None,
        clip_timeout=4 * _IMAGE_TIMEOUT_S.value,
        max_clip_bytes=_MAX_BODY_MB.value * 2**20,  # as if it came in the body
    )


def _api_key() -> str:
    if not _API_KEY_FILE.value:
        return os.environ.get("UNIME_JAX_API_KEY", "")
    key = pathlib.Path(_API_KEY_FILE.value).read_text().strip()
    if not key:
        sys.exit(f"error: {_API_KEY_FILE.value} has no key")
    return key


def run() -> None:
    logging.set_verbosity(logging.INFO)
    try:
        app.run(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
