"""Images of requests: `data:` URLs, and, where the server may, http(s) URLs; nothing else."""

import base64
import binascii
import re
from collections.abc import Callable

from unime_jax.data import images
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits

_DATA = re.compile(r"data:(image/[a-z0-9.+-]+)?(;[a-z0-9=.+-]+)*;base64,", re.IGNORECASE)

# The content that a URL leads to; ValueError: it may not be fetched, or cannot be.
Fetch = Callable[[str], bytes]


def reader(limits: Limits, fetch: Fetch | None) -> Callable[[str, str], bytes]:
    """A function from an image's URL and its field to the file's content, its headers checked.

    `fetch` None: the server fetches nothing. It raises RequestError, which names the field.
    """

    def read(url: str, field: str) -> bytes:
        try:
            data = _content(url, fetch)
            images.check(data, max_pixels=limits.image_pixels)
        except ValueError as error:
            raise RequestError(f"{field}: {error}", param=field, code="invalid_image") from error
        return data

    return read


def _content(url: str, fetch: Fetch | None) -> bytes:
    if match := _DATA.match(url):
        try:
            return base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"what follows base64, is not base64: {error}") from error
    if url[:5].lower() == "data:":
        raise ValueError("a data: URL must be data:image/<type>;base64,<content>")
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(
            f"{url[:60]!r} is neither a data: URL nor of http or https; no file of the server is"
            " read"
        )
    if fetch is None:
        raise ValueError(
            "this server fetches no images (--image_urls=none); send data:image/png;base64,..."
        )
    return fetch(url)
