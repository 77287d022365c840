"""Slices by name: sizes, wires, and what is no slice."""

import pytest

from unime_jax.planning import chips


def test_sizes_and_links_by_name():
    for name, count, links in (
        ("v5e:1x1", 1, 0),
        ("v5e:2x4", 8, 2),  # a corner of a line by a line
        ("v5e:4x4", 16, 2),
        ("v5e:16x16", 256, 4),  # rings
        ("v5e:8x16", 128, 3),
        ("v6e:8x8", 64, 2),
        ("v5p:2x2x1", 4, 2),
        ("v5p:2x2x4", 16, 4),
        ("v5p:4x4x4", 64, 6),
        ("2*v5e:4x4", 32, 2),
    ):
        where = chips.parse(name)
        assert (where.chips, where.links) == (count, links), name
        assert where.ici == links * where.chip.link, name

    # Peaks are published ones
    assert chips.CHIPS["v5e"].flops == 197e12 and chips.CHIPS["v6e"].bandwidth == 1.6e12
    for chip in chips.CHIPS.values():
        assert 15e9 < chip.hbm < 103e9 and chip.dimensions in (2, 3)

    # Names of no slice
    for name, message in (
        ("v5e", "is not the name of a TPU slice"),
        ("v5e-16", "is not the name of a TPU slice"),
        ("h100:8", "of chips there are v5e, v5p, v6e"),
        ("v5e:4x4x4", "slices of TPU v5e have 2 sides"),
        ("v5p:4x4", "slices of TPU v5p have 3 sides"),
        ("v5e:0x4", "have 2 sides"),
        ("0*v5e:4x4", "have 2 sides"),
    ):
        with pytest.raises(ValueError, match=message):
            chips.parse(name)
