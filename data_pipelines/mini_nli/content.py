"""Sentences about MiniMMEB's scenes: one, another that follows from it, and one that is false."""

import dataclasses
import random
from collections.abc import Callable

from data_pipelines.mini_mmeb import tasks, world
from data_pipelines.mini_mmeb.pairs import Draw
from data_pipelines.texts import Triple


def triples(seed: int, split: str, count: int) -> list[Triple]:
    """`count` triples with distinct first sentences; they follow from the arguments."""
    rng = random.Random(f"{seed}/mini_nli/{split}")
    draw = Draw("mini_nli", rng, (), test=split == "test")
    found: dict[str, Triple] = {}
    while len(found) < count:
        (kind,) = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
        triple = kind(draw)
        found.setdefault(triple.sent0, triple)
    return list(found.values())


def scene(draw: Draw) -> Triple:
    """One thing or two in a relation; told the other way round, or with less detail."""
    plan = tasks.plan(draw)
    told = plan.caption()
    other = plan.reworded()
    same = other if other != plan else dataclasses.replace(plan, background="")
    wrong = told.swapped() if plan.relation and draw.rng.random() < 0.5 else None
    return Triple(told.text(), same.caption().text(), (wrong or tasks.replaced(draw, told)).text())


def places(draw: Draw) -> Triple:
    """Three or four things and their places; two of them; two of them exchanged."""
    told = tasks.described(world.quadrants(draw.rng, draw.pick(draw.rng.randint(3, 4))))
    part = dataclasses.replace(told, mentions=told.mentions[:2], background="")
    return Triple(told.text(), part.text(), told.swapped().text())


def count(draw: Draw) -> Triple:
    """Things of a kind on a background; without it; another number of them."""
    (kind,) = draw.pick(1)
    number = draw.rng.randint(1, 4)
    told = tasks.counted(number, kind)
    wrong = tasks.counted(number % 4 + 1, kind)
    return Triple(f"{told} on {draw.rng.choice(world.BACKGROUNDS)}", told, wrong)


def label(draw: Draw) -> Triple:
    """A thing on a background as labels have it; in a caption's words; another thing."""
    one, other = draw.pick(2)
    ground = draw.rng.choice(world.BACKGROUNDS)
    return Triple(
        tasks.placed(one, ground),
        f"{world.phrase(*one)} on {ground}",
        tasks.placed(other, ground),
    )


def digit(draw: Draw) -> Triple:
    """A digit that is looked for; its name; another one."""
    one, other = draw.rng.sample(world.NUMBERS, 2)
    return Triple(f"Find an image of the digit {one}.", one, other)


# How often each kind is drawn; of a kind with few first sentences there are fewer in the end.
WEIGHTS: dict[Callable[[Draw], Triple], int] = {scene: 8, places: 5, count: 3, label: 3, digit: 2}
