"""The model behind the server: embeddings of `Embedder.encode`, and no program after the start."""

import base64
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.backbones.tiny_folders import write_folder
from tests.models.oracle import TEXT, VISION, pair_of, picture
from unime_jax import Embedder, sharding
from unime_jax.inference import encoder_programs
from unime_jax.serve.app import make_app
from unime_jax.serve.served_model import ServedModel
from unime_jax.serve.service import Service
from unime_jax.serve.settings import Batching, Limits

SIZES = (1, 4)
EXACT = 1e-6


def test_concurrent_requests_have_the_embeddings_of_encode_and_compile_nothing(
    tmp_path, monkeypatch
):
    pair = pair_of(write_folder(tmp_path, vision=VISION, text=TEXT))
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    embedder = Embedder.from_pretrained(
        pair.backbone.folder, dtype="float32", mesh=mesh, max_length=64
    )
    texts = ["a red circle", "blue " * 12, "a square", "left of <|image_1|> it"]
    images = [picture(28, 28, 0), picture(28, 28, 1), picture(28, 9, 2)]
    prompt = "Find: "
    expected = {
        "texts": embedder.encode(texts, prompt=prompt, batch_size=4),
        "images": embedder.encode([{"image": i, "text": "what?"} for i in images], prompt=prompt),
        "short": embedder.encode(texts, prompt=prompt, truncate_dim=3, batch_size=4),
    }

    model = ServedModel(embedder, SIZES)
    compiled: list[tuple[int, int]] = []
    programs = model.programs(videos=False)
    of_videos = [one for one in model.programs(videos=True) if one not in programs]
    assert of_videos and all(one.layout.clips for one in of_videos)
    row = model.row({"video": np.zeros((2, 28, 28, 3), np.uint8)}, "", "")
    assert row.patches is not None
    needed = [embedder.shapes(n)(len(row.tokens), len(row.patches), True) for n in SIZES]
    assert set(needed) <= set(of_videos)
    model.compile(programs, lambda done, total: compiled.append((done, total)))
    assert compiled == [(n + 1, len(programs)) for n in range(len(programs))]
    late: list[object] = []
    compile_it = encoder_programs._compile
    monkeypatch.setattr(
        encoder_programs, "_compile", lambda *given: (late.append(given), compile_it(*given))[1]
    )

    service = Service(model, "m", Limits(), Batching(SIZES, 0.02), urls=None)
    service.begin(lambda start: None, lambda: None)
    bodies = [{"input": texts, "prompt": prompt}]
    for data in images:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "what?"},
        ]
        bodies.append({"messages": [{"role": "user", "content": parts}], "prompt": prompt})
    bodies.append({"input": texts, "prompt": prompt, "dimensions": 3})
    answers: dict[int, list[list[float]]] = {}
    with TestClient(make_app(service, api_key="", created=0)) as client:

        def ask(number: int) -> None:
            answer = client.post("/v1/embeddings", json=bodies[number]).json()
            assert "data" in answer, answer
            answers[number] = [entry["embedding"] for entry in answer["data"]]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    np.testing.assert_allclose(answers[0], expected["texts"], atol=EXACT)
    for number, vector in enumerate(expected["images"], 1):
        np.testing.assert_allclose(answers[number], vector[None], atol=EXACT)
    np.testing.assert_allclose(answers[len(bodies) - 1], expected["short"], atol=EXACT)
    assert not late, "the start compiles all that usual items need"


@pytest.mark.slow
def test_a_load_on_the_command_and_sigterm_lose_nothing(tmp_path):
    pair = pair_of(write_folder(tmp_path, vision=VISION, text=TEXT))
    command = [sys.executable, "-m", "benchmarks.serving", f"--model={pair.backbone.folder}"]
    command += ["--max_length=256", "--seconds=5", "--connections=2,8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGTERM under load: exit status 0" in done.stdout
