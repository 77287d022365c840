"""What an earlier start of a run has left of its evaluation, or nothing where that is damaged."""

from unime_jax import files
from unime_jax.evaluation import mmeb, scores


def set_damaged_aside(workdir: files.Path) -> None:
    """Keeps scores only where they are whole, and the results that the report shows are there.

    What is damaged is renamed, and evaluated again in its time.
    """
    path = workdir / "evaluation.json"
    try:
        found = scores.read_scores(workdir)
        for side, values in found.items():
            missing = [key for key in ("datasets", "All", "composition") if key not in values]
            if missing:
                raise ValueError(f"{side!r} has no {' and '.join(missing)}")
    except ValueError as error:
        files.set_aside(path, error)
        return
    for side in found:
        results = workdir / f"results_{side}.npz"
        try:
            mmeb.load_results(results)
        except FileNotFoundError as error:
            files.set_aside(path, error)
            return
        except Exception as error:  # damaged archives raise whatever zipfile, zlib and NumPy do
            files.set_aside(results, error)
            files.set_aside(path, f"{results.name} is damaged")
            return
