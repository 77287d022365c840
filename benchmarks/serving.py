"""Load on a server of embeddings, on this machine: latencies, requests a second, and a stop.

    python -m benchmarks.serving --model=runs/stage2/hf --seconds=20

It starts `unime_jax.serve`, sends requests of one item each over as many connections as
`--connections` says, compares every embedding with that of `Embedder.encode`, and sends SIGTERM
in the middle of the last load. A table in Markdown is printed; the status is 1 if an embedding
differs, or an accepted request was lost.
"""

import argparse
import base64
import collections
import dataclasses
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image

from data_pipelines.mini_mmeb import render
from data_pipelines.mini_mmeb.world import Scene, Thing
from unime_jax import Embedder

EXACT = 1e-6  # largest difference to `Embedder.encode`, float32
KINDS = ("red circle", "orange cross", "cyan star", "purple square", "green triangle")


@dataclasses.dataclass
class Request:
    """A body, and the embedding that it is to have."""

    kind: str
    body: bytes
    expected: np.ndarray


@dataclasses.dataclass
class Seen:
    """What clients saw: latencies of answers by kind, other ends, the largest difference."""

    seconds: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    ends: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    difference: float = 0.0


def requests_of(embedder: Embedder, with_images: bool) -> list[Request]:
    texts = [f"{a} above {b} on {c}" for a in KINDS for b in KINDS for c in ("gray", "sand")]
    vectors = embedder.encode(texts)
    requests = [
        Request("text", json.dumps({"input": text}).encode(), vector)
        for text, vector in zip(texts, vectors, strict=True)
    ]
    if not with_images:
        return requests
    files = []
    for number, kind in enumerate(KINDS * 3):
        thing = Thing(*kind.split(), 14 + number, 30 - number, 10.5)
        file = io.BytesIO()
        Image.fromarray(np.asarray(render.draw(Scene(48, 48, "gray", (thing,), number)))).save(
            file, "PNG"
        )
        files.append(file.getvalue())
    vectors = embedder.encode([{"image": file, "text": "Identify the object."} for file in files])
    for file, vector in zip(files, vectors, strict=True):
        url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "Identify the object."},
        ]
        body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
        requests.append(Request("image", body, vector))
    return requests


def ask(connection: http.client.HTTPConnection, request: Request, seen: Seen) -> None:
    """One request; OSError and HTTPException: there was no answer."""
    started = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/embeddings", request.body, headers)
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - started
    seen.ends[str(response.status)] += 1
    if response.status != 200:
        return
    seen.seconds[request.kind].append(seconds)
    vector = np.array(json.loads(content)["data"][0]["embedding"], np.float32)
    seen.difference = max(seen.difference, float(np.abs(vector - request.expected).max()))


def load(
    port: int, requests: list[Request], connections: int, seconds: float, stop_at: float | None
) -> tuple[Seen, threading.Event, list[threading.Thread]]:
    """Starts clients that ask until the time is over, or the server is gone for good."""
    seen, over = Seen(), threading.Event()

    def client(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(requests))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        step = 0
        while not over.is_set():
            try:
                ask(connection, requests[order[step % len(order)]], seen)
            except (OSError, http.client.HTTPException) as error:
                seen.ends[type(error).__name__] += 1
                connection.close()
                if isinstance(error, ConnectionRefusedError):
                    return
            step += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(connections)]
    for thread in threads:
        thread.start()
    time.sleep(seconds if stop_at is None else stop_at)
    if stop_at is None:
        over.set()
        for thread in threads:
            thread.join()
    return seen, over, threads


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(port: int, server: subprocess.Popen) -> float:
    """Seconds until the server accepts requests."""
    started = time.perf_counter()
    while server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return time.perf_counter() - started
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit("the server has ended before it was ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--connections", default="1,8,32", help="of each load in turn")
    parser.add_argument("--max_length", type=int, default=None)
    parser.add_argument("--texts_alone", action="store_true")
    arguments = parser.parse_args()
    embedder = Embedder.from_pretrained(
        arguments.model, dtype="float32", max_length=arguments.max_length
    )
    embeds_images = bool(embedder.backbone.layout.patches) and not arguments.texts_alone
    requests = requests_of(embedder, embeds_images)
    del embedder
    port = free_port()
    command = [sys.executable, "-m", "unime_jax.serve", f"--model={arguments.model}"]
    command += [f"--port={port}", "--dtype=float32"]
    if arguments.max_length:
        command.append(f"--max_length={arguments.max_length}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        log: list[str] = []
        reading = threading.Thread(target=lambda: log.extend(server.stderr))
        reading.start()
        print(f"ready after {wait_ready(port, server):.1f} s")
        print("\n| connections | requests/s | p50 ms | p99 ms | text p50 | image p50 | worst |")
        print("|---|---|---|---|---|---|---|")
        differences, answered = [], 0
        counts = [int(n) for n in arguments.connections.split(",")]
        for connections in counts:
            seen, _, _ = load(port, requests, connections, arguments.seconds, None)
            answered += seen.ends["200"]
            differences.append(seen.difference)
            every = 1000 * np.array(sum(seen.seconds.values(), []))
            middle = {kind: 1000 * np.median(values) for kind, values in seen.seconds.items()}
            print(
                f"| {connections} | {len(every) / arguments.seconds:.0f} |"
                f" {np.median(every):.1f} | {np.quantile(every, 0.99):.1f} |"
                f" {middle.get('text', np.nan):.1f} | {middle.get('image', np.nan):.1f} |"
                f" {every.max():.1f} |"
            )
        seen, over, threads = load(port, requests, counts[-1], 0, arguments.seconds / 2)
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
        over.set()
        for thread in threads:
            thread.join()
        reading.join()
    differences.append(seen.difference)
    answered += seen.ends["200"]
    last = next((line for line in log if "stopped; answers" in line), "")
    by_server = int((re.search(r"200: (\d+)", last) or [0, 0])[1])
    print(f"\nSIGTERM under load: exit status {status}; clients saw {dict(seen.ends)}")
    print(f"answers of status 200: {answered} at the clients, {by_server} at the server")
    print(f"largest difference to Embedder.encode: {max(differences):.1e}")
    lost = answered != by_server or "nothing accepted is lost" not in last
    sys.exit(1 if lost or status or max(differences) > EXACT else 0)


if __name__ == "__main__":
    main()
