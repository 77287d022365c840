"""MiniMMEB's rows: candidates are judged here by a reader of the texts that the builder lacks."""

import itertools
import random
import re

from data_pipelines.mini_mmeb import content, digits, tasks, world
from data_pipelines.mini_mmeb.pairs import Draw
from data_pipelines.mini_mmeb.render import Crop, Digit
from data_pipelines.mini_mmeb.world import Scene
from tests.tables import for_each

SEED, ROWS = 3, 40
DATASETS = {dataset.name: dataset for dataset in content.DATASETS}
COLOR = "(red|green|blue|yellow|purple|orange|pink|cyan)"
SHAPE = "(circle|square|triangle|star|cross)"
PLACE = "((?:top|bottom) (?:left|right))"
NOUN = re.compile(rf"(?:{PLACE} )?an? (?:(small|big) )?{COLOR} {SHAPE}")
RELATION = re.compile("left of|right of|above|below|inside|in front of")


def describes(text: str, scene: Scene) -> bool:
    """Whether the scene shows what the text says, in a generous reading."""
    where = re.search(r" on (\w+)", text)
    if where and where.group(1) != scene.background:
        return False
    nouns = NOUN.findall(text)
    assert nouns, text
    relation = RELATION.search(re.sub(PLACE, "", text))
    for things in itertools.permutations(scene.things, len(nouns)):
        named = all(
            (color, shape) == (thing.color, thing.shape)
            and size in ("", "small" if thing.radius < 9 else "big")
            and place in ("", quadrant(thing, scene))
            for (place, size, color, shape), thing in zip(nouns, things, strict=True)
        )
        if named and (not relation or stands(relation.group(), *things[:2], scene)):
            return True
    return False


def quadrant(thing, scene):
    vertical = "bottom" if 2 * thing.y >= scene.height else "top"
    return vertical + (" right" if 2 * thing.x >= scene.width else " left")


def stands(relation, one, other, scene):
    differences = {
        "left of": other.x - one.x,
        "right of": one.x - other.x,
        "above": other.y - one.y,
        "below": one.y - other.y,
    }
    if relation in differences:
        return differences[relation] > 1
    return scene.things.index(one) > scene.things.index(other)


def test_the_reader_tells_a_caption_from_its_swap():
    one = world.Thing("red", "circle", 12, 24, 11)
    two = world.Thing("blue", "square", 36, 24, 7)
    scene = Scene(48, 48, "dots", (two, one), 0)
    assert describes("a red circle left of a blue square", scene)
    assert not describes("a blue square left of a red circle", scene)
    assert describes("a small blue square on dots", scene)
    assert not describes("a big blue square on dots", scene)
    assert not describes("a red circle on sand", scene)
    assert describes("top left a red circle", Scene(48, 96, "dots", (one,), 0))


def test_only_the_first_candidate_is_right():
    for row in content.eval_rows(DATASETS["Scenes_i2t"], SEED, ROWS):
        verdicts = [describes(side.text, row.query.picture) for side in row.candidates]
        assert verdicts == [True] + [False] * 49, row.candidates[0].text

    # The edited image differs from all others
    unchanged = 0
    for row in content.eval_rows(DATASETS["Edits"], SEED, ROWS):
        shown = [side.picture.content() for side in row.candidates]
        assert shown[0] not in shown[1:]
        unchanged += row.query.picture.content() in shown[1:]
    # The hardest candidate is the image itself; it is there as often as any hard one.
    assert abs(unchanged / ROWS - content.HARD_SHARE) < 0.1

    # Only the first image shows the caption
    for name in ["Scenes_t2i", "NewScenes_t2i", "LongCaptions_t2i"]:
        for row in content.eval_rows(DATASETS[name], SEED, ROWS):
            verdicts = [describes(row.query.text, side.picture) for side in row.candidates]
            assert verdicts == [True] + [False] * 49, row.query.text

    # Only the first candidate is the digit
    for name in ["Digits", "DigitSearch", "DigitPairs"]:
        labels = digits._bundle()[1]

        def value(side, labels=labels):
            if isinstance(side.picture, Digit):
                return labels[side.picture.row]
            return world.NUMBERS.index(side.text.strip(" .\n").split()[-1])

        for row in content.eval_rows(DATASETS[name], SEED, ROWS):
            assert value(row.candidates[0]) == value(row.query), name
            assert all(value(side) != value(row.query) for side in row.candidates[1:]), name

    # Only the first crop shows the object
    for name in ["Crops", "Pointing"]:
        for row in content.eval_rows(DATASETS[name], SEED, ROWS):
            kinds = [side.picture.scene.things[side.picture.thing].kind for side in row.candidates]
            first = row.candidates[0].picture
            assert isinstance(first, Crop) and first.scene == row.query.picture, name
            assert kinds[0] not in kinds[1:], name
            if name == "Crops":
                assert row.query.text.endswith(" ".join(kinds[0]) + "\n")
            else:
                told = f"a {' '.join(kinds[0])} {row.query.text.split('object ')[1]}"
                assert describes(told.replace("the ", "a "), first.scene)

    # Only the first label answers
    for name in ["Objects", "NewObjects", "Relations", "Counts", "Groups"]:
        for row in content.eval_rows(DATASETS[name], SEED, ROWS):
            scene = row.query.picture
            if name in ("Objects", "NewObjects"):
                right = {f"{' '.join(thing.kind)} on {scene.background}" for thing in scene.things}
            elif name == "Relations":
                relation, anchor = re.search(r"is (.*) the (.*)\?", row.query.text).groups()
                right = {
                    f"{' '.join(thing.kind)} on {scene.background}"
                    for thing in scene.things
                    if describes(f"a {' '.join(thing.kind)} {relation} a {anchor}", scene)
                }
            else:
                asked = re.search(r"How many (.*)\?", row.query.text).group(1)
                counted = [t for t in scene.things if world.plural(t.shape) == asked.split()[0]]
                (kind,) = {thing.kind for thing in counted}
                noun = world.plural(kind[1]) if len(counted) > 1 else kind[1]
                right = {f"{world.NUMBERS[len(counted)]} {kind[0]} {noun}"}
            assert {side.text for side in row.candidates} & right == {row.candidates[0].text}, name


@for_each("name", DATASETS)
def test_candidates_are_distinct_and_fifty_or_all_labels(name):
    expected = 10 if name.startswith("Digit") else 8 if name == "Backgrounds" else 50
    for row in content.eval_rows(DATASETS[name], SEED, 4):  # fewer rows than candidates
        assert len({side.key for side in row.candidates}) == len(row.candidates) == expected


def test_each_meta_task_has_both_splits_and_ood_has_instructions_of_its_own():
    assert {(d.meta, d.split) for d in content.DATASETS} == set(
        itertools.product(("CLS", "VQA", "RET", "VG"), ("IND", "OOD"))
    )

    def instruction(text):
        words = {w for kind in world.KINDS for w in kind} | {*world.NUMBERS, "an"}
        return " ".join(word for word in re.findall(r"\w+", text) if word not in words)[:40]

    trained = {
        instruction(row.query.text)
        for source in content.SOURCES
        for row in content.train_rows(source, SEED, ROWS)
    }
    for dataset in content.DATASETS:
        if dataset.split == "OOD":
            rows = content.eval_rows(dataset, SEED, ROWS)
            assert not trained & {instruction(row.query.text) for row in rows}

    # Rows follow from the seed
    for source in content.SOURCES:
        again = content.train_rows.__wrapped__(source, SEED, 20)
        assert again == content.train_rows(source, SEED, 20)
        assert again != content.train_rows(source, SEED + 1, 20)


def shown_kinds(picture):
    if isinstance(picture, Scene):
        return {thing.kind for thing in picture.things}
    return {picture.scene.things[picture.thing].kind} if isinstance(picture, Crop) else set()


def test_held_out_kinds_are_never_trained_and_always_asked_for():
    for source in content.SOURCES:
        for row in content.train_rows(source, SEED, 200):
            for side in (row.query, row.positive, *row.negatives):
                assert not shown_kinds(side.picture) & set(world.HELD_OUT)
                for color, shape in world.HELD_OUT:
                    assert f"{color} {shape}" not in side.text
                    assert f"{color} {world.plural(shape)}" not in side.text
    for dataset in content.DATASETS:
        for row in content.eval_rows(dataset, SEED, ROWS):
            kinds = shown_kinds(row.query.picture) | shown_kinds(row.candidates[0].picture)
            assert bool(kinds & set(world.HELD_OUT)) == dataset.unseen

    # Training and test pictures are disjoint
    trained = {
        side.picture
        for source in content.SOURCES
        for row in content.train_rows(source, SEED, 200)
        for side in (row.query, row.positive, *row.negatives)
    }
    tested = {picture for _, picture in content.pictures(SEED, ROWS)}
    assert trained & tested == set()
    rows = [{p.row for p in part if isinstance(p, Digit)} for part in (trained, tested)]
    assert len(rows[0]) > 100 and len(rows[1]) > 100 and not rows[0] & rows[1]

    # A path names one picture
    pictures = {}
    for source in content.SOURCES:
        for row in content.train_rows(source, SEED, 200):
            for side in (row.query, row.positive, *row.negatives):
                if side.path:
                    assert pictures.setdefault(side.path, side.picture) == side.picture
    for path, picture in content.pictures(SEED, ROWS):
        assert pictures.setdefault(path, picture) == picture

    # Negatives are few ragged and false
    counts = {
        source.name: [len(row.negatives) for row in content.train_rows(source, SEED, 200)]
        for source in content.SOURCES
    }
    assert set(counts["Scenes_i2t"]) == {0, 1, 2}
    assert sum(map(any, ([n] for row in counts.values() for n in row))) < 0.2 * 200 * len(counts)
    for row in content.train_rows(DATASETS["Scenes_i2t"], SEED, 200):
        assert describes(row.positive.text, row.query.picture)
        assert not any(describes(side.text, row.query.picture) for side in row.negatives)
    for row in content.train_rows(DATASETS["Scenes_t2i"], SEED, 200):
        assert not any(describes(row.query.text, side.picture) for side in row.negatives)

    # False negatives mean the same under other ids
    rows = content.train_rows(DATASETS["Scenes_i2t"], SEED, 300)
    groups = content.false_negatives(rows)
    assert len({row.id for row in rows}) == len(rows)
    for one, other in itertools.chain.from_iterable(itertools.permutations(g, 2) for g in groups):
        assert describes(rows[one].positive.text, rows[other].query.picture)
    reworded = [g for g in groups if len({rows[number].positive.key for number in g}) > 1]
    assert reworded and len(groups) > len(reworded)  # both kinds: the same text, and another one
    images = content.train_rows(DATASETS["Scenes_t2i"], SEED, 300)
    for group in content.false_negatives(images):
        assert len({images[number].positive.path for number in group}) == len(group)


@for_each("subset", content.COMPOSITION)
def test_composition_captions_differ_in_truth_and_in_the_named_way(subset):
    for row in content.composition_rows(subset, SEED, ROWS):
        true, false = row.caption.text(), row.negative.text()
        assert describes(true, row.scene) and not describes(false, row.scene)
        if subset == "swap":
            assert sorted(re.findall(r"[a-m]\w+", true)) == sorted(re.findall(r"[a-m]\w+", false))
        else:
            assert (len(false) > len(true) + 8) == (subset == "add")


@for_each("relation", [*world.SIDES, *world.STACKED])
def test_scenes_show_the_relation_they_were_drawn_for(relation):
    draw = Draw("x", random.Random(0), (), test=False)
    kinds = (("red", "circle"), ("blue", "square"))
    for _ in range(50):
        scene = tasks.Plan(kinds, relation).draw(draw)
        assert describes(f"a red circle {relation} a blue square", scene)
        assert not describes(f"a blue square {relation} a red circle", scene)
        assert all(0 < t.x < scene.width and 0 < t.y < scene.height for t in scene.things)
