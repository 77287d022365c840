"""Published peaks of chips, and the wiring of TPU slices."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip.

    Attributes:
      hbm: bytes that a program may use, without those that the compiler reserves.
      flops: dense bfloat16 operations a second.
      bandwidth: bytes a second of HBM.
      link: bytes a second of one ICI link in one direction.
      dimensions: of the torus that slices are cut from.
      wraps: a side of this many chips (or a multiple) is a ring, a shorter one a line.
    """

    name: str
    hbm: float
    flops: float
    bandwidth: float
    link: float
    dimensions: int
    wraps: int


# "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus), its tables of chips and of ICI.
# HBM is what libtpu 0.0.42's compiler states as its limit: 15.75 GiB of a v5e's 16, and so on.
CHIPS = {
    "v5e": Chip("TPU v5e", 15.75 * 2**30, 197e12, 0.81e12, 4.5e10, 2, 16),
    "v5p": Chip("TPU v5p", 95.74 * 2**30, 459e12, 2.8e12, 9e10, 3, 4),
    "v6e": Chip("TPU v6e", 31.25 * 2**30, 918e12, 1.6e12, 9e10, 2, 16),
}
# NVIDIA's data sheets of the SXM modules: dense bfloat16, and both ways of NVLink halved.
GPUS = {
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 80e9, 312e12, 2.039e12, 1.5e11, 1, 1),
    "NVIDIA H100 80GB HBM3": Chip("H100 80GB", 80e9, 989.4e12, 3.35e12, 2.25e11, 1, 1),
    "NVIDIA H200": Chip("H200", 141e9, 989.4e12, 4.8e12, 2.25e11, 1, 1),
}
# What JAX calls a device (`jax.Device.device_kind`).
KINDS = {
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5e": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],
    "TPU v5p": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"],
    "TPU v6e": CHIPS["v6e"],
    **GPUS,
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """TPU slices by libtpu's name: "v5e:4x4" is one, "2*v5e:4x4" are two.

    The data-centre network between slices is not modelled.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]
    count: int = 1

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.sides) * self.count

    @property
    def links(self) -> int:
        """ICI links of the least connected chip, a corner if sides are lines."""
        return sum(_links(side, self.chip.wraps) for side in self.sides)

    @property
    def ici(self) -> float:
        """Bytes a second that the least connected chip can send; 0 for a single chip."""
        return self.links * self.chip.link


def _links(side: int, wraps: int) -> int:
    if side == 1:
        return 0
    return 2 if side % wraps == 0 else 1


def parse(name: str) -> Slice:
    """A slice by name.

    Raises:
      ValueError: the name has another form, an unknown chip, or the wrong number of sides.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise ValueError(
            f"{name!r} is not the name of a TPU slice: chip:sides, as in v5e:4x4 or v5p:2x2x4, and "
            "2*v5e:4x4 for two slices"
        )
    count, kind, sides = match.groups()
    if kind not in CHIPS:
        raise ValueError(f"{name!r}: of chips there are {', '.join(CHIPS)}")
    chip, lengths = CHIPS[kind], tuple(map(int, sides.split("x")))
    if len(lengths) != chip.dimensions or 0 in lengths or count == "0":
        raise ValueError(f"{name!r}: slices of {chip.name} have {chip.dimensions} sides")
    return Slice(name, chip, lengths, int(count or 1))
