"""Work directories of evaluations and of trainings that never were."""

import json

from tests.evaluation.tiny_report import TABLE, image_bytes
from unime_jax.evaluation import scores
from unime_jax.evaluation.stored import results


def write_evaluation(workdir, rankings, config=None, **kinds):
    """As job `evaluate` leaves it; `kinds` are further kinds of scores."""
    folder = workdir / "results"
    folder.mkdir(parents=True)
    for name, ranking in rankings.items():
        results.save_result(folder / f"mmeb-{name}.npz", ranking)
    percent = {name: ranking.hit_at_1 for name, ranking in rankings.items()}
    table = {name: TABLE[name] for name in rankings}
    scores.write_scores(workdir, "scores", scores.summary(percent, table) | kinds)
    write_config(workdir, config or {})
    return workdir


def write_training(workdir, before, after):
    """As a training run leaves it."""
    workdir.mkdir(parents=True)
    for when, rankings in (("before", before), ("after", after)):
        percent = {name: ranking.hit_at_1 for name, ranking in rankings.items()}
        scores.write_scores(workdir, when, scores.summary(percent, TABLE))
        results.save_results(workdir / f"results_{when}.npz", rankings)
    write_config(workdir, {})
    return workdir


def write_scores_of(workdir, datasets, table, when="after", **more):
    """Scores alone, without results by row."""
    scores.write_scores(workdir, when, scores.summary(datasets, table) | more)
    return workdir


def write_config(workdir, config):
    """With the images as plain files."""
    data = workdir.parent / "data"
    for name in TABLE:
        (data / "images" / name).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            for side in "qt":
                path = f"{name}/{side}{number}.png"
                if not (data / "images" / path).exists():
                    (data / "images" / path).write_bytes(image_bytes(path))
    places = {"data": {"folder": str(data)}, "evaluation": {"mmeb": "own", "images": "images"}}
    (workdir / "config.json").write_text(json.dumps({"job": "evaluate"} | places | config))
