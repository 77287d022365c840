"""Scores and results of an earlier start of a run; damaged ones are set aside."""

from unime_jax import files
from unime_jax.evaluation import scores
from unime_jax.evaluation.stored import results


def set_damaged_aside(workdir: files.Path) -> None:
    """Keeps scores only where they are whole, and the results that the report shows are there.

    What is damaged is renamed, and evaluated again in its time.
    """
    path = workdir / "evaluation.json"
    try:
        sides = scores.read_scores(workdir)
        for side, values in sides.items():
            missing = [key for key in ("datasets", "All", "composition") if key not in values]
            if missing:
                raise ValueError(f"{side!r} has no {' and '.join(missing)}")
    except ValueError as error:
        files.set_aside(path, error)
        return
    for side in sides:
        file = workdir / f"results_{side}.npz"
        try:
            results.load_results(file)
            results.load_sets(file)
        except FileNotFoundError as error:
            files.set_aside(path, error)
            return
        except Exception as error:  # damaged archives raise whatever zipfile, zlib and NumPy do
            files.set_aside(file, error)
            files.set_aside(path, f"{file.name} is damaged")
            return
