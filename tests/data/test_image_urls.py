"""Images by URL, from a server on this machine: what is fetched, and why others are not."""

import base64
import http.server
import io
import socket
import ssl
import threading
import time

import pytest
from PIL import Image

from unime_jax.data import image_urls, timed_http
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.images import ImageError
from unime_jax.data.user_inputs import to_item

# Of "localhost", trusted by nobody: openssl req -x509 -newkey ec -nodes -days 36500 ...
PEM = """
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpCuhOdud5gyyFHWn
nwvQcHnPZQJO+PxOSGggHYZqG4KhRANCAATdeYXeLcEbSGZPOG6wKwb1ohtlFUI8
3FbJpeu8+tliPQMMnwHn7yqtoV/xeT5OSMXS5iimp8ONdsHx+GUGjVXB
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUUimz+BrdZA1CzL/h6AOFeBLmpkEwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODIzMTM1MFoYDzIxMjYxMTA0
MjMxMzUwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATdeYXeLcEbSGZPOG6wKwb1ohtlFUI83FbJpeu8+tliPQMMnwHn7yqt
oV/xeT5OSMXS5iimp8ONdsHx+GUGjVXBo2kwZzAdBgNVHQ4EFgQUVdkrhXmoSvZC
hXjXTdq5htBGh40wHwYDVR0jBBgwFoAUVdkrhXmoSvZChXjXTdq5htBGh40wDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgGx6WqnO0pyoWSxTPa+pLLo4rwh5Vnzv29KejKpv3misCIHI07UnQ1xhg
lNQ8djrWEAPllp8UUdbaOr0QYA+GlWXZ
-----END CERTIFICATE-----
"""
LOCAL = ImageUrls(timeout=0.6, max_bytes=5000, private_addresses=True)


def picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 9)).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


class Handler(http.server.BaseHTTPRequestHandler):
    """By path: an image, or what a careless or hostile server may answer."""

    def do_GET(self):  # noqa: N802
        self.server.asked.append((self.path, dict(self.headers)))
        name = self.path.partition("?")[0].strip("/")
        redirects = {
            "once": "/a%20b.png?x=y",
            "loop": "/loop",
            "file": "file:///etc/passwd",
            "home": f"http://localhost:{self.server.server_port}/a.png",
            "nowhere": "",
        }
        if name in redirects:
            self.send_response(302)
            if redirects[name]:
                self.send_header("Location", redirects[name])
            self.end_headers()
            return
        if name == "missing":
            self.send_error(404)
            return
        content = {"page": b"<html>", "large": PICTURE + bytes(6000)}.get(name, PICTURE)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if name == "page" else "image/png")
        if name == "packed":
            self.send_header("Content-Encoding", "gzip")
        if name not in ("unsized", "drip"):
            self.send_header("Content-Length", str(len(content) + 9 * (name == "short")))
        self.end_headers()
        for start in range(len(content)) if name == "drip" else ():
            self.wfile.write(content[start : start + 1])
            time.sleep(0.05)  # never silent for long, and never done
            if self.server.ended.is_set():
                return
        for _ in range(2 if name == "unsized" else 1):
            self.wfile.write(content * (40 if name == "unsized" else 1))

    def log_message(self, format, *args):
        """Nothing."""


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Nothing: clients leave in the middle of an answer."""


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.ended, server.daemon_threads = [], threading.Event(), True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_images_are_fetched_within_limits_and_errors_name_the_url(server, tmp_path, monkeypatch):
    at = f"http://127.0.0.1:{server.server_port}"
    assert image_urls.fetch(f"{at}/a b.png?q=ü#part", LOCAL) == PICTURE
    path, headers = server.asked.pop()
    assert path == "/a%20b.png?q=%C3%BC" and headers["User-Agent"].startswith("unime_jax/")
    assert image_urls.fetch(f"{at}/once", LOCAL) == PICTURE
    assert server.asked[-1][0] == "/a%20b.png?x=y"
    data = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    item = to_item({"text": "a", "image": [data, f"{at}/a.png?key=secret"]}, urls=LOCAL)
    assert [media.data for media in item.media] == [PICTURE] * 2
    assert [media.path for media in item.media] == ["", f"{at}/a.png?..."]

    # A host that accepts, and then is silent; and one that does not answer at all.
    silent = socket.create_server(("127.0.0.1", 0))
    dead = socket.create_server(("127.0.0.1", 0))
    dead_port = dead.getsockname()[1]
    dead.close()
    elsewhere = f"http://localhost:{server.server_port}"
    cases = {
        f"{at}/missing?key=secret": "the answer is 404 Not Found",
        f"{at}/page": "no image (it is called 'text/html'): cannot identify the format",
        f"{at}/large": f"{len(PICTURE) + 6000} bytes, the limit is 5000",
        f"{at}/unsized": "more than 5000 bytes, which is the limit",
        f"{at}/short": "the answer ends 9 bytes too early",
        f"{at}/packed": "its content is encoded as 'gzip'",
        f"{at}/loop": f"more than 3 redirects, the last to {at}/loop",
        f"{at}/file": "redirected to file:///etc/passwd: only http and https URLs",
        f"{at}/nowhere": "answer 302 does not say where to go",
        f"{at}/drip": "no whole answer within the timeout of 0.6 s",
        f"http://127.0.0.1:{silent.getsockname()[1]}/": "no whole answer within the timeout",
        f"http://127.0.0.1:{dead_port}/": "cannot be fetched: ConnectionRefusedError",
        "http://no-such-host.invalid/": "cannot be fetched: gaierror",
        "http://a:b@127.0.0.1/": "a user's name or password",
        "http:///a.png": "with a host",
        "http://127.0.0.1:999999/": "cannot be fetched: ValueError",
        "http://" + "a" * 9000: "a URL of 9007 characters, the limit is 8192",
        "data:image/png,abc": "a data URL must be data:image/...;base64,...",
        "data:image/png;base64,a!": "its content is not base64",
        "data:text/plain;base64,YWJj": "no image (it is called 'text/plain')",
    }
    for url, message in cases.items():
        start = time.monotonic()
        with pytest.raises(ValueError) as error:
            to_item({"image": url}, urls=LOCAL)
        assert message in str(error.value), url
        assert image_urls.named(url).rstrip(".")[:50] in str(error.value)
        assert "secret" not in str(error.value)
        assert time.monotonic() - start < 3 or ".invalid" in url  # a name server may be slow
    silent.close()

    # Strangers' URLs lead to no host of the own network, nor to another than is allowed.
    asked = len(server.asked)
    public = ImageUrls(timeout=0.6)
    for url in (f"{at}/a.png", f"{elsewhere}/a.png", "http://169.254.169.254/latest/"):
        with pytest.raises(ImageError, match="an address that is not of the public internet"):
            image_urls.fetch(url, public)
    only = ImageUrls(private_addresses=True, hosts=("127.0.0.1",))
    assert image_urls.fetch(f"{at}/a.png", only) == PICTURE
    with pytest.raises(ImageError, match="redirected to http://localhost.* none of those that are"):
        image_urls.fetch(f"{at}/home", only)
    assert len(server.asked) == asked + 2
    for address in (
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.0.1", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1"),
        *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "fec0::1"),
    ):
        assert not timed_http.is_public(address), address
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert timed_http.is_public(address), address

    # The address that was looked at is the one that is asked, whatever the name means next.
    answers = iter(["127.0.0.1", "8.8.8.8"])
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: real(next(answers), *a, **k))
    assert image_urls.fetch(f"http://rebinding.org:{server.server_port}/a.png", LOCAL) == PICTURE

    # Over TLS the certificate counts.
    (tmp_path / "pair.pem").write_text(PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(socket, "getaddrinfo", real)
    secure = f"https://localhost:{server.server_port}/a.png"
    with pytest.raises(ImageError, match="CERTIFICATE_VERIFY_FAILED"):
        image_urls.fetch(secure, LOCAL)
    trusting = ssl.create_default_context(cadata=PEM[PEM.index("-----BEGIN CERT") :])
    monkeypatch.setattr(timed_http, "tls_context", lambda: trusting)
    assert image_urls.fetch(secure, LOCAL) == PICTURE

    # Nothing is fetched unless it is asked for.
    with pytest.raises(ValueError, match=r"a.png\?\.\.\. is a URL, and nothing is fetched unless"):
        to_item({"image": f"{at}/a.png?key=secret"})
    for wrong in ({"timeout": 0}, {"max_bytes": 0}, {"max_redirects": -1}, {"hosts": "a.org"}):
        with pytest.raises(ValueError, match="hosts is|above 0"):
            ImageUrls(**wrong)
