"""What is said of a run beside its scores."""

import types

from unime_jax.evaluation.report import headline


def test_where_the_weights_come_from():
    run = lambda **given: types.SimpleNamespace(**{"init_from": "", "init": "random"} | given)  # noqa: E731
    assert headline.initialisation(run()) == "random"
    assert headline.initialisation(run(init="pretrained")) == "pretrained"
    assert headline.initialisation(run(init_from="runs/a", init="random")) == "of the run runs/a"

    # Durations
    said = {0: "0 s", 59.4: "59 s", 59.6: "1 min 0 s", 3599: "59 min 59 s", 7500: "2 h 5 min"}
    assert {seconds: headline.duration(seconds) for seconds in said} == said
