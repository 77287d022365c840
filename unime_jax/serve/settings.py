"""Settings of the server: what a request may be, and how requests become batches."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
      body_bytes: of a request's body.
      items: of a request.
      images, videos: of an item.
      image_pixels: of an image, and of a frame of a video.
      waiting: items of all requests that are accepted and not answered yet.
      body_seconds: within which a body is to come.
    """

    body_bytes: int = 32 * 2**20
    items: int = 2048
    images: int = 16
    videos: int = 2
    image_pixels: int = 16_000_000
    waiting: int = 4096
    body_seconds: int = 60

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"the limit {field.name} is {value}; it must be at least 1")
        if self.waiting < self.items:
            raise ValueError(
                f"max_waiting is {self.waiting}, and max_items {self.items}: a request of so many"
                " items could never be accepted; lower max_items, or raise max_waiting"
            )


@dataclasses.dataclass(frozen=True)
class Batching:
    """How the items of all requests become batches.

    Attributes:
      sizes: rows of a batch, rising. A batch has the smallest size that takes what waits, at most
        the last one; each size has compiled programs of its own.
      wait_seconds: that an item waits to share a batch with others that are accepted, and being
        prepared, where the model is idle.
    """

    sizes: tuple[int, ...] = (1, 8, 32)
    wait_seconds: float = 0.005

    def __post_init__(self) -> None:
        if not self.sizes or self.sizes[0] < 1 or list(self.sizes) != sorted({*self.sizes}):
            raise ValueError(f"batch_sizes are {self.sizes}; they must rise, from 1 or more")
        if not 0 <= self.wait_seconds <= 10:
            raise ValueError(
                f"max_wait_ms is {1000 * self.wait_seconds:g}; it must be between 0 and 10000"
            )
