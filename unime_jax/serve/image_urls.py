"""Images of requests: `data:` URLs, and, where the server may, http(s) URLs; nothing else."""

from collections.abc import Callable

from unime_jax.data import image_urls, images
from unime_jax.data.image_urls import ImageUrls
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits


def reader(limits: Limits, urls: ImageUrls | None) -> Callable[[str, str], bytes]:
    """A function from an image's URL and its field to the file's content, its headers checked.

    `urls` are the limits under which images are fetched; None: none is. The function raises
    RequestError, which names the field.
    """

    def read(url: str, field: str) -> bytes:
        try:
            data = _content(url, urls)
            images.check(data, max_pixels=limits.image_pixels)
        except images.ImageError as error:
            raise RequestError(f"{field}: {error}", param=field, code="invalid_image") from error
        return data

    return read


def _content(url: str, urls: ImageUrls | None) -> bytes:
    if image_urls.is_data_url(url):
        return image_urls.decode_data(url)
    if not image_urls.is_url(url):
        raise images.ImageError(
            f"{image_urls.named(url)!r} is neither a data: URL nor of http or https; no file of the"
            " server is read"
        )
    if urls is None:
        raise images.ImageError(
            "this server fetches no images (--image_urls=none); send data:image/png;base64,..."
        )
    return image_urls.fetch(url, urls)
