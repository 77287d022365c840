"""Published peaks of TPU chips, and the wiring of their slices."""

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
