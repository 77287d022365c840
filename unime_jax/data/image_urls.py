"""Images and clips by URL: fetched within limits that suit URLs of strangers, or decoded from data.

A server that fetches what users name can be made to read what only it can reach. So every address
that a host name stands for is looked at before a connection is made to it, after each redirect
again, and nothing but the content of an image or clip comes back.
"""

import base64
import binascii
import dataclasses
import http.client
import re
import time
import urllib.parse

from unime_jax import __version__
from unime_jax.batch import MediaKind
from unime_jax.data import clips, images, timed_http
from unime_jax.data.strange_texts import shown

SCHEMES = ("http", "https")
REDIRECTS = (301, 302, 303, 307, 308)
LONGEST = 2**13  # characters of a URL
READ = 2**16  # bytes that are read at once
_URL = re.compile(r"https?://", re.IGNORECASE)
_DATA = re.compile(r"data:", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ImageUrls:
    """Limits of what is fetched for an item; without one of these nothing is.

    No proxy is used, no cookie or credential is sent, and what is compressed on its way is refused.

    Attributes:
      timeout: seconds for an image, redirects included; looking up a host's name may take the
        system's own time beside them.
      max_bytes: of an image's file.
      clip_timeout, max_clip_bytes: the same for a clip.
      max_redirects: that are followed, each under the same rules.
      private_addresses: whether hosts of the own machine or network may be asked: loopback,
        private, link-local (a cloud's metadata) and others that are not of the public internet.
      hosts: names of the only hosts that may be asked; None: any.
    """

    timeout: float = 10.0
    max_bytes: int = 20 * 2**20
    max_redirects: int = 3
    private_addresses: bool = False
    hosts: tuple[str, ...] | None = None
    clip_timeout: float = 60.0
    max_clip_bytes: int = 200 * 2**20

    def __post_init__(self) -> None:
        seconds, size = (self.timeout, self.clip_timeout), (self.max_bytes, self.max_clip_bytes)
        if not min(seconds) > 0 or min(size) < 1 or self.max_redirects < 0:
            raise ValueError(
                f"{self}: timeouts and bytes must be above 0, max_redirects at least 0"
            )
        if isinstance(self.hosts, str):
            raise ValueError(f"hosts is {self.hosts!r}; it must be a tuple of names, or None")


def is_url(text: str) -> bool:
    """Whether a text is a URL that can be fetched: http or https."""
    return _URL.match(text) is not None


def is_data_url(text: str) -> bool:
    """Whether a text is a URL that holds its content."""
    return _DATA.match(text) is not None


def named(url: str) -> str:
    """A URL in messages and logs: short, without its query, which may hold a secret."""
    if is_data_url(url):
        return shown(url[:40]) + "..."
    parts = url.partition("#")[0].partition("?")
    return shown(parts[0][:200]) + ("?..." if parts[1] else "")


def decode_data(url: str, kind: MediaKind = "image") -> bytes:
    """The content of `data:image/png;base64,...`, as chat messages have images, or of a clip.

    Raises:
      ImageError: it is not base64, too large, or no image or clip.
    """
    largest = images.MAX_BYTES if kind == "image" else clips.MAX_BYTES
    header, comma, content = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        types = "image" if kind == "image" else "video"
        raise images.ImageError(f"{named(url)}: a data URL must be data:{types}/...;base64,...")
    if len(content) > largest // 3 * 4 + 4:
        raise images.ImageError(f"{named(url)}: more than {largest} bytes")
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise images.ImageError(f"{named(url)}: its content is not base64: {error}") from error
    _check(url, data, header[5:].split(";")[0], kind)
    return data


def fetch(url: str, limits: ImageUrls, kind: MediaKind = "image") -> bytes:
    """The content of the file that a URL leads to.

    Raises:
      ImageError: a limit is exceeded, the host cannot be reached or may not be asked, the answer
        is an error, or no image or clip. The message names the URL.
    """
    if kind == "clip":
        limits = dataclasses.replace(
            limits, timeout=limits.clip_timeout, max_bytes=limits.max_clip_bytes
        )
    deadline = time.monotonic() + limits.timeout
    target = url
    for _ in range(limits.max_redirects + 1):
        try:
            status, said, answer = _get(target, limits, deadline, kind)
        except (images.ImageError, timed_http.PrivateAddressError) as error:
            raise images.ImageError(_told(url, target, str(error))) from error
        except TimeoutError as error:
            seconds = f"no whole answer within the timeout of {limits.timeout:g} s"
            raise images.ImageError(_told(url, target, seconds)) from error
        except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            why = f"cannot be fetched: {type(error).__name__}: {shown(str(error))[:200]}"
            raise images.ImageError(_told(url, target, why)) from error
        if status not in REDIRECTS:
            _check(url, answer, said, kind)
            return answer
        target = urllib.parse.urljoin(target, answer.decode())
    raise images.ImageError(
        f"{named(url)}: more than {limits.max_redirects} redirects, the last to {named(target)}"
    )


def _told(url: str, target: str, why: str) -> str:
    return f"{named(url)}{'' if url == target else f', redirected to {named(target)}'}: {why}"


def _check(url: str, data: bytes, said: str, kind: MediaKind) -> None:
    try:
        (images if kind == "image" else clips).check(data)
    except images.ImageError as error:
        called = f" (it is called {shown(said)[:80]!r})" if said else ""
        raise images.ImageError(f"{named(url)}: no {kind}{called}: {error}") from error


def _get(url: str, limits: ImageUrls, deadline: float, kind: MediaKind) -> tuple[int, str, bytes]:
    """Status, type and content of one answer; in the place of a redirect's content, its target."""
    parts = _checked(url, limits)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    address = timed_http.connected(
        host, port, private_addresses=limits.private_addresses, deadline=deadline
    )
    connection = timed_http.Connection(host, port, address, deadline)
    try:
        if parts.scheme == "https":
            connection.encrypt(host)
        path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
        headers = {
            "Accept": "image/*" if kind == "image" else "video/*, image/*, application/zip",
            "Accept-Encoding": "identity",
            "User-Agent": f"unime_jax/{__version__}",
            "Connection": "close",
        }
        connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), _content(answer, limits)
    finally:
        connection.hang_up()


def _content(answer: http.client.HTTPResponse, limits: ImageUrls) -> bytes:
    """What an answer holds, up to the limit; of a redirect, where it leads."""
    if answer.status in REDIRECTS:
        target = answer.headers.get("Location", "")
        if not target:
            raise images.ImageError(f"answer {answer.status} does not say where to go")
        return target.encode("latin-1", "replace")
    if answer.status != http.HTTPStatus.OK:
        raise images.ImageError(f"the answer is {answer.status} {shown(answer.reason)[:80]}")
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise images.ImageError(f"its content is encoded as {shown(coding)[:40]!r}")
    size = answer.headers.get("Content-Length", "")
    if size.isdecimal() and int(size[:20]) > limits.max_bytes:
        raise images.ImageError(f"{size[:20]} bytes, the limit is {limits.max_bytes}")
    content = bytearray()
    while part := answer.read1(READ):
        content += part
        if len(content) > limits.max_bytes:
            raise images.ImageError(f"more than {limits.max_bytes} bytes, which is the limit")
    if answer.length:  # read1 says nothing of an end that comes too early
        raise images.ImageError(f"the answer ends {answer.length} bytes too early")
    return bytes(content)


def _checked(url: str, limits: ImageUrls) -> urllib.parse.SplitResult:
    """The parts of a URL that may be asked for."""
    if len(url) > LONGEST:
        raise images.ImageError(f"a URL of {len(url)} characters, the limit is {LONGEST}")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise images.ImageError(f"only {' and '.join(SCHEMES)} URLs with a host are fetched")
    if parts.username is not None or parts.password is not None:
        raise images.ImageError("a URL with a user's name or password is not fetched")
    if limits.hosts is not None and parts.hostname not in {host.lower() for host in limits.hosts}:
        raise images.ImageError(
            f"the host {shown(parts.hostname)[:100]!r} is none of those that are allowed"
        )
    return parts
