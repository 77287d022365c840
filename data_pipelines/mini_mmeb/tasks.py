"""MiniMMEB's tasks: each function draws pairs without end, one meta-task and instruction each.

Instructions follow MMEB's manner but are short, since every token costs.
"""

import dataclasses
from collections.abc import Sequence

from data_pipelines.mini_mmeb import world
from data_pipelines.mini_mmeb.pairs import CROPPED, IMAGE, REPRESENT, Draw, Pair, Side, Task
from data_pipelines.mini_mmeb.render import Crop, Digit
from data_pipelines.mini_mmeb.world import Caption, Kind, Mention, Scene


def label_side(label: str) -> Side:
    return Side(label, shows=label)


def image_side(draw: Draw, scene: Scene) -> Side:
    return Side(REPRESENT, draw.path(), scene, scene)


def labelled(draw: Draw, instruction: str, scene: Scene, label: str) -> Pair:
    """An image and a question whose answer is a short text."""
    query = Side(f"{IMAGE}{instruction}\n", draw.path(), scene)
    return Pair(query, label_side(label), label, label)


def with_labels(draw: Draw, pair: Pair, near: Sequence[str], every: Sequence[str]) -> Pair:
    """The pair with `near` labels as hard candidates and its whole label set as others."""
    others = draw.rng.sample(every, len(every))
    return dataclasses.replace(
        pair, hard=tuple(map(label_side, near)), others=tuple(map(label_side, others))
    )


def placed(kind: Kind, background: str) -> str:
    return f"{' '.join(kind)} on {background}"


def placed_labels(draw: Draw) -> list[str]:
    return [placed(kind, background) for kind in draw.kinds for background in world.BACKGROUNDS]


# Classification


def digit(draw: Draw) -> Task:
    while True:
        label = draw.rng.randrange(10)
        row = draw.rng.choice(draw.digits[label])
        query = digit_side(draw, f"{IMAGE}Identify the digit.\n", row)
        name = world.NUMBERS[label]
        yield Pair(query, label_side(name), name, name)


def main_object(draw: Draw, instruction: str) -> Task:
    while True:
        scene = world.single(draw.rng, draw.rng.choice(draw.gold))
        pair = labelled(draw, instruction, scene, placed(scene.things[0].kind, scene.background))
        yield with_labels(draw, pair, (), placed_labels(draw))


def background(draw: Draw) -> Task:
    while True:
        scene = world.quadrants(draw.rng, draw.pick(draw.rng.randint(1, 2)))
        pair = labelled(draw, "Identify the background.", scene, scene.background)
        yield with_labels(draw, pair, (), world.BACKGROUNDS)


# Visual question answering


def count(draw: Draw, question: str, *, others: bool) -> Task:
    """Up to four things of a kind. `question` may hold {things}: their shape.

    With `others` there is at times one more thing, of another colour and shape.
    """
    while True:
        number = draw.rng.randint(1, 4)
        kind = draw.rng.choice(draw.gold)
        kinds = [kind] * number
        if others and number < 4 and draw.rng.random() < 0.6:
            kinds.append(draw.rng.choice([k for k in draw.kinds if not set(k) & set(kind)]))
        scene = world.quadrants(draw.rng, draw.rng.sample(kinds, len(kinds)), sizes=("big",))
        text = question.format(things=world.plural(kind[1]))
        pair = labelled(draw, text, scene, counted(number, kind))
        near = [counted(1, other) for other in kinds if other != kind]
        near.append(counted(number % 4 + 1, kind))
        every = [counted(other, k) for other in range(1, 5) for k in draw.kinds]
        yield with_labels(draw, pair, near, every)


def counted(number: int, kind: Kind) -> str:
    if number == 1:
        return " ".join(("one", *kind))
    return world.phrase(*kind, count=number)


def relation(draw: Draw) -> Task:
    """Two things: which one stands left of (right of, above, below) the other?"""
    while True:
        side, kinds = draw.rng.choice(world.SIDES), draw.pick(2)
        scene = world.beside(draw.rng, side, kinds)
        question = f"Answer the question: What is {side} the {' '.join(kinds[1])}?"
        answer, other = (placed(kind, scene.background) for kind in kinds)
        pair = labelled(draw, question, scene, answer)
        yield with_labels(draw, pair, (other,), placed_labels(draw))


# Retrieval


@dataclasses.dataclass(frozen=True)
class Plan:
    """A scene in words, before it is drawn: one thing, or two in a relation."""

    kinds: tuple[Kind, ...]
    relation: str = ""
    size: str = ""
    background: str = ""

    def caption(self) -> Caption:
        mentions = tuple(Mention(kind, self.size) for kind in self.kinds)
        return Caption(mentions, self.relation, self.background)

    def draw(self, draw: Draw) -> Scene:
        if not self.relation:
            return world.single(draw.rng, self.kinds[0], self.size, self.background)
        if self.relation in world.STACKED:
            return world.stacked(draw.rng, self.relation, self.kinds, self.background)
        return world.beside(draw.rng, self.relation, self.kinds, self.background)

    def twin(self, draw: Draw) -> "Plan":
        """The plan most easily mistaken for this one: kinds swapped, or another size or place."""
        if self.relation:
            return dataclasses.replace(self, kinds=self.kinds[::-1])
        if draw.rng.random() < 0.5:
            return dataclasses.replace(self, size="big" if self.size == "small" else "small")
        others = [name for name in world.BACKGROUNDS if name != self.background]
        return dataclasses.replace(self, background=draw.rng.choice(others))

    def reworded(self) -> "Plan":
        """The same scene told from the other thing's side."""
        if self.relation not in world.SIDES:
            return self
        return dataclasses.replace(
            self, kinds=self.kinds[::-1], relation=world.OPPOSITE[self.relation]
        )

    def meaning(self) -> str:
        told = self.reworded() if self.relation in ("right of", "below") else self
        return told.caption().text()


def plan(draw: Draw) -> Plan:
    chance, ground = draw.rng.random(), draw.rng.choice(world.BACKGROUNDS)
    if chance < 0.4:
        return Plan(tuple(draw.pick(1)), size=draw.rng.choice(world.SIZES), background=ground)
    if chance < 0.85:
        return Plan(tuple(draw.pick(2)), draw.rng.choice(world.SIDES), background=ground)
    while True:  # both convex, so that either can lie below, and of two colours, to be told apart
        kinds = draw.pick(2)
        flat = all(shape in ("circle", "square", "triangle") for _, shape in kinds)
        if flat and kinds[0][0] != kinds[1][0]:
            return Plan(tuple(kinds), draw.rng.choice(world.STACKED), background=ground)


def plans(draw: Draw):
    """Plans in pairs of twins; some are told a second time, the other way round where possible."""
    told: list[Plan] = []
    while True:
        if told and draw.rng.random() < draw.repeats:
            first = draw.rng.choice(told).reworded()
        else:
            first = plan(draw)
        told.append(first)
        yield first, first.twin(draw)


def text_to_image(draw: Draw, instruction: str) -> Task:
    for twins in plans(draw):
        sides = [image_side(draw, twin.draw(draw)) for twin in twins]
        for one, side, other in zip(twins, sides, reversed(sides), strict=True):
            caption = one.caption()
            query = Side(instruction.format(caption.text()))
            yield Pair(query, side, caption, one.meaning(), (other,))


def image_to_text(draw: Draw) -> Task:
    for twins in plans(draw):
        for one, other in (twins, reversed(twins)):
            scene, caption = one.draw(draw), one.caption()
            query = Side(f"{IMAGE}Find a caption of this scene.\n", draw.path(), scene)
            wrong = [other.caption(), replaced(draw, caption)]
            hard = tuple(Side(text.text(), shows=text) for text in wrong if not text.holds(scene))
            yield Pair(query, Side(caption.text(), shows=caption), scene, one.meaning(), hard)


def replaced(draw: Draw, caption: Caption) -> Caption:
    """The caption with one colour or shape replaced by one that no mention has."""
    mentions = list(caption.mentions)
    used = {word for mention in mentions for word in mention.kind}
    at = draw.rng.randrange(len(mentions))
    color, shape = mentions[at].kind
    kinds = [
        kind
        for kind in draw.kinds
        if (kind[0] == color) != (kind[1] == shape) and not ({*kind} - {color, shape}) & used
    ]
    mentions[at] = dataclasses.replace(mentions[at], kind=draw.rng.choice(kinds))
    return dataclasses.replace(caption, mentions=tuple(mentions))


def described(scene: Scene) -> Caption:
    """Everything in the scene and where it is."""
    things = sorted(scene.things, key=lambda thing: world.PLACES.index(scene.place(thing)))
    mentions = tuple(Mention(thing.kind, place=scene.place(thing)) for thing in things)
    return Caption(mentions, background=scene.background)


def long_caption(draw: Draw) -> Task:
    """Three or four things and their places; a twin has two of them exchanged."""
    while True:
        scene = world.quadrants(draw.rng, draw.pick(draw.rng.randint(3, 4)))
        one, two, *rest = scene.things
        exchanged = (
            dataclasses.replace(one, color=two.color, shape=two.shape),
            dataclasses.replace(two, color=one.color, shape=one.shape),
            *rest,
        )
        twin = dataclasses.replace(scene, things=exchanged, texture=draw.rng.randrange(1 << 30))
        sides = [image_side(draw, scene), image_side(draw, twin)]
        for shown, side, other in zip((scene, twin), sides, reversed(sides), strict=True):
            caption = described(shown)
            query = Side(f"Find the image: {caption.text()}\n")
            yield Pair(query, side, caption, caption.text(), (other,))


def edit(draw: Draw) -> Task:
    """An image and a change; the unchanged image is the candidate most easily mistaken."""
    while True:
        before = world.quadrants(draw.rng, draw.pick(draw.rng.randint(1, 2)))
        change, after = changed(draw, before)
        _, otherwise = changed(draw, before)
        text = f"{IMAGE}Find this image with a change: {change}\n"
        source = Side(text, draw.path(), before)
        answer = content_side(draw, after)
        hard = [Side(REPRESENT, source.path, before, before.content())]
        if otherwise.content() != after.content():
            hard.append(content_side(draw, otherwise))
        yield Pair(source, answer, after.content(), str(after.content()), tuple(hard))


def content_side(draw: Draw, scene: Scene) -> Side:
    return Side(REPRESENT, draw.path(), scene, scene.content())


def changed(draw: Draw, scene: Scene) -> tuple[str, Scene]:
    """A change in words, and the scene with it."""
    rng = draw.rng
    at = rng.randrange(len(scene.things))
    thing = scene.things[at]
    if rng.random() < 0.3:
        name = rng.choice([name for name in world.BACKGROUNDS if name != scene.background])
        return f"now on {name}", dataclasses.replace(scene, background=name)
    taken = {thing.kind for thing in scene.things}
    kind = rng.choice([kind for kind in draw.kinds if kind not in taken])
    things = list(scene.things)
    things[at] = dataclasses.replace(thing, color=kind[0], shape=kind[1])
    text = f"the {' '.join(thing.kind)} becomes {world.phrase(*kind)}"
    return text, dataclasses.replace(scene, things=tuple(things))


def digit_side(draw: Draw, text: str, row: int) -> Side:
    part = "Test" if draw.test else "Train"
    label = next(label for label, rows in enumerate(draw.digits) if row in rows)
    return Side(text, f"images/Digits/{part}/{row:06d}.png", Digit(row), label)


def digit_images(draw: Draw) -> tuple[Side, ...]:
    """An image of every digit."""
    return tuple(digit_side(draw, REPRESENT, draw.rng.choice(rows)) for rows in draw.digits)


def digit_search(draw: Draw) -> Task:
    while True:
        label = draw.rng.randrange(10)
        name = world.NUMBERS[label]
        answer = digit_side(draw, REPRESENT, draw.rng.choice(draw.digits[label]))
        query = Side(f"Find an image of the digit {name}.\n")
        yield Pair(query, answer, label, name, others=digit_images(draw), closed=True)


def digit_pair(draw: Draw) -> Task:
    while True:
        label = draw.rng.randrange(10)
        one, other = draw.rng.sample(draw.digits[label], 2)
        query = digit_side(draw, f"{IMAGE}Find an image of this digit.\n", one)
        answer = digit_side(draw, REPRESENT, other)
        name = world.NUMBERS[label]
        yield Pair(query, answer, label, name, others=digit_images(draw), closed=True)


# Visual grounding


def crops(draw: Draw, scene: Scene) -> list[Side]:
    return [
        Side(CROPPED, draw.path(" ".join(thing.kind)), Crop(scene, index), thing.kind)
        for index, thing in enumerate(scene.things)
    ]


def grounded(draw: Draw, scene: Scene, kind: Kind, instruction: str) -> Pair:
    query = Side(f"{IMAGE}{instruction}\n", draw.path(), scene)
    sides = crops(draw, scene)
    answer = next(side for side in sides if side.shows == kind)
    hard = tuple(side for side in sides if side is not answer)
    return Pair(query, answer, kind, " ".join(kind), hard)


def crop(draw: Draw) -> Task:
    while True:
        kinds: Sequence[Kind] = draw.pick(draw.rng.randint(2, 4))
        scene = world.quadrants(draw.rng, kinds)
        yield grounded(draw, scene, kinds[0], f"Select the object: {' '.join(kinds[0])}")


def pointing(draw: Draw) -> Task:
    while True:
        side, kinds = draw.rng.choice(world.SIDES), draw.pick(2)
        scene = world.beside(draw.rng, side, kinds)
        text = f"Select the object {side} the {' '.join(kinds[1])}"
        yield grounded(draw, scene, kinds[0], text)
