"""Requests and answers over HTTP in this process: forms, refusals, limits, a full queue, a stop."""

import base64
import contextlib
import http.server
import io
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.fake_model import FakeModel
from tests.tables import for_each
from unime_jax.data.clips import archive
from unime_jax.data.image_urls import ImageUrls
from unime_jax.serve.app import make_app
from unime_jax.serve.server import bound, make_server
from unime_jax.serve.service import Service
from unime_jax.serve.settings import Batching, Limits

NAME = "runs/a/hf"
LIMITS = Limits(body_bytes=20_000, items=8, images=2, image_pixels=1000, waiting=16, body_seconds=1)
BATCHING = Batching((1, 4), 0.002)


def service_of(model: FakeModel, urls: ImageUrls | None) -> Service:
    service = Service(model, NAME, LIMITS, BATCHING, urls)
    service.begin(lambda start: None, lambda: None)
    while service.status == "starting":
        time.sleep(0.001)
    return service


@contextlib.contextmanager
def client_of(model: FakeModel, *, api_key: str = "", urls: ImageUrls | None = None):
    app = make_app(service_of(model, urls), api_key=api_key, created=17)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def file_server(files: dict[str, bytes]):
    """The address of a server of these files, on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client():
    with client_of(FakeModel()) as client:
        yield client


def data_url(width: int = 3, height: int = 2) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat(*parts: object, role: str = "user") -> dict[str, object]:
    return {"messages": [{"role": role, "content": list(parts)}]}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(data: bytes) -> dict[str, object]:
    url = f"data:application/zip;base64,{base64.b64encode(data).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def vector(item, prompt="", suffix="") -> np.ndarray:
    model = FakeModel()
    return model.encode([model.row(item, prompt, suffix)])[0]


PART = "messages[0].content[0]"
URL = f"{PART}.image_url"
SYSTEM = {"role": "system", "content": "a "}
USER = {"role": "user", "content": "red"}
RED = base64.b64decode(data_url().partition(",")[2])
CLIP = archive([RED, RED], 1.0)


@for_each(
    "body, items, tokens",
    [
        ({"input": "red"}, [("red",)], 3),
        ({"input": ["red", "blue"], "model": NAME, "user": "me"}, [("red",), ("blue",)], 7),
        ({"input": "red", "prompt": "a ", "suffix": "!"}, [("red", "a ", "!")], 6),
        ({"input": "red", "prompt_name": "query"}, [("red", "q:")], 5),
        ({"input": "red", "add_special_tokens": True, "request_id": "7"}, [("red",)], 3),
        ({"messages": [{"role": "user", "content": "red"}]}, [("red",)], 3),
        (chat(text("red")), [("red",)], 3),
        ({"messages": [SYSTEM, USER]}, [("red", "a ")], 5),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, [("red",)], 3),
        (chat(image(data_url())), [({"image": RED},)], 1),
        (chat(image(data_url()), text("red")), [({"text": "red", "image": RED},)], 4),
        (chat(video(CLIP), text("red")), [({"text": "red", "video": CLIP},)], 4),
    ],
)
def test_embeddings_in_both_encodings(client, body, items, tokens):
    expected = np.stack([vector(*item) for item in items])
    for form in (None, "float", "base64"):
        asked = body if form is None else body | {"encoding_format": form}
        response = client.post("/v1/embeddings", json=asked)
        answer = response.json()
        assert response.status_code == 200, answer
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        assert (answer["object"], answer["model"], answer["usage"]) == ("list", NAME, usage)
        assert [entry["index"] for entry in answer["data"]] == list(range(len(items)))
        assert set(answer) == {"object", "data", "model", "usage"}
        embeddings = [entry["embedding"] for entry in answer["data"]]
        if form == "base64":
            embeddings = [np.frombuffer(base64.b64decode(e), "<f4") for e in embeddings]
        np.testing.assert_array_equal(np.array(embeddings, np.float32), expected)


def post(client, body: object, status: int) -> dict:
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = client.post("/v1/embeddings", content=content)
    assert response.status_code == status, response.text
    return response.json()


@for_each(
    "body, status, param, words",
    [
        (b"{", 400, None, "no JSON"),
        (b'{"input": "\xff"}', 400, None, "no JSON"),
        (b"[" * 10_000, 400, None, "no JSON"),
        ([], 400, None, "an empty list"),
        ({}, 400, "input", "neither"),
        ({"input": "a"} | chat(text("a")), 400, "input", "both"),
        ({"input": []}, 400, "input", "empty list"),
        ({"input": [3, 4]}, 400, "input", "token ids"),
        ({"input": ["a", [3, 4]]}, 400, "input[1]", "token ids"),
        ({"input": ["a", None]}, 400, "input[1]", "null"),
        ({"input": {"text": "a"}}, 400, "input", "an object"),
        ({"input": ["a"] * 9}, 400, "input", "the limit is 8"),
        ({"input": ["a", "\ud800"]}, 400, "input[1]", "not valid Unicode"),
        ({"input": ["a", "a" * 20]}, 400, "input[1]", "8 tokens or more"),
        ({"input": "a", "model": "b"}, 404, "model", NAME),
        ({"input": "a", "model": 3}, 400, "model", "a text"),
        ({"input": "a", "dimensions": 5}, 400, "dimensions", "dimensions is 5"),
        ({"input": "a", "dimensions": True}, 400, "dimensions", "true"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "base64"),
        ({"input": "a", "truncate_prompt_tokens": 4}, 400, "truncate_prompt_tokens", "-1"),
        ({"input": "a", "normalize": False}, 400, "normalize", "true"),
        ({"input": "a", "colour": 1}, 400, "colour", "no field"),
        ({"input": "a", "prompt_name": "x"}, 400, "prompt_name", "no prompt 'x'"),
        ({"input": "a", "prompt": "x", "prompt_name": "query"}, 400, "prompt_name", "both"),
        ({"messages": []}, 400, "messages", "not empty"),
        ({"messages": [[]]}, 400, "messages", "a request for each"),
        ({"messages": ["a"]}, 400, "messages[0]", "must be an object"),
        (chat(text("a"), role="tool"), 400, "messages[0]", "tools"),
        ({"messages": [SYSTEM, SYSTEM]}, 400, "messages[1]", "the first of all"),
        ({"messages": [SYSTEM, USER], "prompt": "x"}, 400, "messages[0]", "leave out prompt"),
        (chat({"type": "input_audio"}), 400, PART, "no other"),
        (chat({"type": "image", "image": "/etc/passwd"}), 400, PART, "image_url"),
        (chat(*[image(data_url())] * 3), 400, "messages", "3 images"),
        (chat(image(data_url(50, 50))), 400, URL, "50 x 50"),
        (chat(*[video(CLIP)] * 3), 400, "messages", "3 videos, the limit is 2"),
        (chat(video(RED)), 400, f"{PART}.video_url", "no clip"),
        (chat(video(archive([base64.b64decode(data_url(50, 50).partition(",")[2])], 1.0))), 400,
         f"{PART}.video_url", "50 x 50"),
        (chat({"type": "video", "video": "/etc/passwd"}), 400, PART, "no other parts"),
        (chat(image("file:///etc/passwd")), 400, URL, "no file"),
        (chat(image("http://a/b")), 400, URL, "fetches no images"),
        (chat(image("data:image/png;base64,!")), 400, URL, "base64"),
        (chat(image("data:image/png;base64,AAAA")), 400, URL, "format"),
        ({"input": "a" * 30_000}, 413, None, "the limit is 20000"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(client, body, status, param, words):
    error = post(client, body, status)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert words in error["message"]


def test_what_else_a_client_sees(client):
    cut = post(client, {"input": ["a" * 20, "?"], "truncate_prompt_tokens": -1}, 200)
    assert [sentence.partition(":")[0] for sentence in cut["warnings"]] == ["input[0]", "input[1]"]
    assert "8 tokens" in cut["warnings"][0] and "without image" in cut["warnings"][1]
    short = post(client, {"input": "red", "dimensions": 2}, 200)["data"][0]["embedding"]
    np.testing.assert_allclose(short, vector("red")[:2] / np.linalg.norm(vector("red")[:2]), 1e-6)

    models = client.get("/v1/models").json()["data"]
    assert models == [client.get(f"/v1/models/{NAME}").json()]
    assert models[0]["id"] == NAME and models[0]["dimensions"] == 4
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ready"}
    assert 'unime_jax_requests_total{status="200"}' in client.get("/metrics").text
    for path, status in (("/v1/embedding", 404), ("/v1/embeddings", 405)):
        response = client.get(path)
        assert response.status_code == status and response.json()["error"]["message"]

    # A key is asked for everywhere but for the health, and is compared whole.
    with client_of(FakeModel(), api_key="secret") as closed:
        assert closed.get("/health").status_code == 200
        for key in ("", "Bearer secre", "Bearer secret2", "Basic secret"):
            headers = {"Authorization": key}
            for path in ("/v1/models", "/metrics", "/v1/embeddings"):
                ask = closed.post if path == "/v1/embeddings" else closed.get
                response = ask(path, headers=headers)
                assert response.status_code == 401, (key, path)
                assert response.json()["error"]["code"] == "invalid_api_key"
        response = closed.post(
            "/v1/embeddings", json={"input": "a"}, headers={"Authorization": "Bearer secret"}
        )
        assert response.status_code == 200

    # Images by URL are fetched where the server may, and from where.
    with file_server({"/red.png": RED}) as host:
        for urls, status in ((ImageUrls(private_addresses=True), 200), (ImageUrls(), 400)):
            with client_of(FakeModel(), urls=urls) as fetching:
                answer = post(fetching, chat(image(f"{host}/red.png")), status)
                if status == 400:
                    assert answer["error"]["param"] == URL and "127.0.0.1" in str(answer)
                    continue
                embedding = np.float32(answer["data"][0]["embedding"])
                np.testing.assert_array_equal(embedding, vector({"image": RED}))
                missing = post(fetching, chat(image(f"{host}/blue.png")), 400)
                assert "404" in missing["error"]["message"]

    # A model that fails is the server's fault, and the next request is answered.
    model = FakeModel()
    with client_of(model) as failing:
        model.failure = RuntimeError("secret")
        error = post(failing, {"input": "a"}, 500)["error"]
        assert error["type"] == "server_error" and "secret" not in error["message"]
        model.nonfinite.add("a")
        assert "weights are NaN" in post(failing, {"input": ["b", "a"]}, 500)["error"]["message"]
        post(failing, {"input": "b"}, 200)


def test_a_full_queue_refuses_and_requests_share_batches_fairly():
    model = FakeModel()
    with client_of(model) as client:
        model.goes.clear()
        answers: dict[str, dict] = {}

        def ask(name: str, count: int, status: int = 200) -> threading.Thread:
            def run() -> None:
                answers[name] = post(client, {"input": [name] * count}, status)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        def wait_for(count: int, queued: int) -> None:
            wanted = f"items_waiting {count}\n", f"items_queued {queued}\n"
            while any(line not in client.get("/metrics").text for line in wanted):
                time.sleep(0.002)

        threads = [ask("first", 1)]
        assert model.begun.wait(10)
        threads.append(ask("large", 8))
        wait_for(9, 8)
        threads.append(ask("small", 1))
        wait_for(10, 9)
        response = client.post("/v1/embeddings", json={"input": ["b"] * 7})
        assert response.status_code == 429 and response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["Retry-After"]) >= 1
        wait_for(10, 9)  # what was refused takes no places
        model.goes.set()
        for thread in threads:
            thread.join(10)
        assert model.batches == [
            ["first"],
            ["large", "small", "large", "large"],
            ["large"] * 4,
            ["large"],
        ]
        np.testing.assert_array_equal(
            np.float32([entry["embedding"] for entry in answers["large"]["data"]]),
            np.stack([vector("large")] * 8),
        )
        wait_for(0, 0)

        # An embedding that is not finite fails its own request, and not those beside it.
        model.nonfinite.add("bad")
        model.goes.clear()
        model.begun.clear()
        threads = [ask("first", 1)]
        assert model.begun.wait(10)
        threads += [ask("bad", 2, 500), ask("good", 1)]
        wait_for(4, 3)
        model.goes.set()
        for thread in threads:
            thread.join(10)
        assert "weights are NaN" in answers["bad"]["error"]["message"]
        np.testing.assert_array_equal(
            np.float32(answers["good"]["data"][0]["embedding"]), vector("good")
        )
        assert model.batches[-1] == ["good"]


def test_a_stop_answers_what_is_accepted_and_refuses_the_rest():
    """Over sockets, as the stop is uvicorn's; the signal itself is that of its handler."""
    model = FakeModel()
    service = Service(model, NAME, LIMITS, BATCHING, urls=None)
    started = threading.Event()
    service.begin(lambda start: started.wait(10), lambda: None)
    app = make_app(service, api_key="", created=17)
    listener = bound("127.0.0.1", 0)
    listener.listen()
    port = listener.getsockname()[1]
    with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1, port {port}"):
        bound("127.0.0.1", port)
    server = make_server(app, service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.005)

    def ask(path: str = "/v1/embeddings") -> tuple[int, dict]:
        url = f"http://127.0.0.1:{port}{path}"
        data = b'{"input": "red"}' if "embeddings" in path else None
        try:
            with urllib.request.urlopen(url, data, timeout=20) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                assert error.headers["Connection"] == "close" or path == "/health"
                return error.code, json.load(error)

    assert ask("/health") == (503, {"status": "starting", "compiled": 0, "programs": 0})
    assert ask()[1]["error"]["code"] == "starting"
    started.set()
    while service.status == "starting":
        time.sleep(0.002)
    model.goes.clear()
    answers: list[tuple[int, dict]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(6)]
    for asking in threads:
        asking.start()
    while service.places.taken < 6:
        time.sleep(0.002)
    with socket.create_connection(("127.0.0.1", port)) as leaving:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n"
        leaving.sendall(head.encode() + b'{"input": "lo"}')
        while service.places.taken < 7:
            time.sleep(0.002)
    while service.places.taken > 6:  # a client that has left takes no place
        time.sleep(0.002)
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(head.encode() + b'{"input"')
        assert b"408" in slow.recv(99)
    server.handle_exit(signal.SIGTERM, None)
    refused = ask()
    assert refused[0] == 503 and refused[1]["error"]["code"] == "stopping"
    assert ask("/health") == (503, {"status": "stopping"})
    time.sleep(0.3)  # several looks at whether all is answered
    assert not answers and thread.is_alive()
    model.goes.set()
    for asking in threads:
        asking.join(10)
    thread.join(10)
    assert not thread.is_alive() and [status for status, _ in answers] == [200] * 6
    assert "lo" not in sum(model.batches, [])
    with pytest.raises(urllib.error.URLError):
        ask()
