"""Images and clips of requests: `data:` URLs, and http(s) URLs where it may; nothing else."""

from collections.abc import Callable

from unime_jax.batch import MediaKind
from unime_jax.data import clips, image_urls, images
from unime_jax.data.image_urls import ImageUrls
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits


def reader(limits: Limits, urls: ImageUrls | None) -> Callable[[str, str, MediaKind], bytes]:
    """A function from an image's or clip's URL and field to the file's content, headers checked.

    `urls` are the limits under which they are fetched; None: none is. The function raises
    RequestError, which names the field.
    """

    def read(url: str, field: str, kind: MediaKind) -> bytes:
        try:
            data = _content(url, urls, kind)
            (images if kind == "image" else clips).check(data, max_pixels=limits.image_pixels)
        except images.ImageError as error:
            code = "invalid_image" if kind == "image" else "invalid_video"
            raise RequestError(f"{field}: {error}", param=field, code=code) from error
        return data

    return read


def _content(url: str, urls: ImageUrls | None, kind: MediaKind) -> bytes:
    if image_urls.is_data_url(url):
        return image_urls.decode_data(url, kind)
    if not image_urls.is_url(url):
        raise images.ImageError(
            f"{image_urls.named(url)!r} is neither a data: URL nor of http or https; no file of the"
            " server is read"
        )
    if urls is None:
        example = "image/png" if kind == "image" else "video/mp4"
        raise images.ImageError(
            f"this server fetches no {kind}s (--image_urls=none); send data:{example};base64,..."
        )
    return image_urls.fetch(url, urls, kind)
