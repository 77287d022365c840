"""Collectives of a compiled program, read from its text."""

import re

from unime_jax.planning.counting import hlo

GATHER = "all-gather"


def read_collectives(text):
    """(kind, shape of a result, in how many loops) of every collective of optimised HLO."""
    module = hlo.parse(text)
    collectives = []

    def walk(name, depth):
        for line in module.computations[name].values():
            kind = line.opcode.removesuffix("-start")
            if kind in hlo.COLLECTIVES:
                sides = re.findall(r"\w+\[([\d,]*)\]", line.type)
                shapes = [tuple(map(int, filter(None, s.split(",")))) for s in sides]
                collectives.extend((kind, shape, depth) for shape in shapes)
            for key in ("body", "to_apply", "calls"):
                if inner := line.called(key):
                    walk(inner, depth + (key == "body"))
            for branch in line.branches:
                walk(branch, depth)

    walk(module.entry, 0)
    return collectives
