"""What batches of a sample of rows are like: how hard, how full, and how often rows come again."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from unime_jax import config
from unime_jax.data import bucket_padding
from unime_jax.data.shapes import BatchShapes, described
from unime_jax.jobs.doctor_data import in_batch
from unime_jax.jobs.doctor_report import Report
from unime_jax.jobs.doctor_rows import Sample

BATCHES = 8  # that are drawn
FEW = 0.25  # different targets of a batch, as a share of its pairs
PADDING = 1.0, 3.0  # of tokens, as a share of real ones, that is noted, and warned of
OVERFLOW = 1.1  # rows of a bucket by those that it has room for
OFTEN, OVER_MEAN = 10.0, 4.0  # passes over a source, and how many times those over all rows
PASSES = 30.0  # over all rows of pretrained weights


def check(
    report: Report,
    facts: dict[str, Any],
    settings: config.TrainConfig,
    sample: Sample,
    shapes: BatchShapes | None,
) -> None:
    """All that follows from a sample of rows and the sizes of batches.

    `shapes`: of a batch; None: there is no backbone to measure by.
    """
    _check_difficulty(report, facts, settings, sample)
    _check_passes(report, facts, settings, sample)
    if shapes is None:
        report.skip("batches.buckets", "rows could not be measured without a backbone")
    elif not len(sample.sizes):
        report.skip("batches.buckets", "there is no usable row to measure")
    else:
        _check_buckets(report, facts, settings, sample, shapes)


def _check_difficulty(
    report: Report, facts: dict[str, Any], settings: config.TrainConfig, sample: Sample
) -> None:
    key, loss = in_batch(settings)
    if loss is None or not sample.pairs:
        return
    pairs = loss.pool or settings.batch_size
    targets = different_targets(settings, sample, pairs)
    negatives = max(targets - 1, 0.0)
    k = loss.hard_negatives
    kept = negatives if k is None else min(k, negatives)
    facts["different targets"] = f"about {targets:.0f} in {pairs} contrasted pairs"
    facts["loss by chance"] = f"{math.log(1 + kept):.2f}, ln(1 + {kept:.0f}), of a model that knows"
    facts["loss by chance"] += " nothing"
    if k is not None and k > negatives and k < settings.batch_size:
        report.add(
            "warning",
            "batches.k",
            f"config.{key}.hard_negatives={k} are to be kept of about {negatives:.0f} negatives "
            "that are not the query's own target; fewer are repeated until they are as many",
            where=f"config.{key}.hard_negatives",
            do="Lower it, raise config.batch_size, or mix the sources more finely "
            "(config.data.source_run).",
        )
    elif targets < FEW * pairs:
        report.add(
            "warning",
            "batches.too_easy",
            f"{pairs} contrasted pairs have about {targets:.0f} different targets, so that a query "
            f"has {negatives:.0f} negatives and the loss begins near ln({1 + kept:.0f}) = "
            f"{math.log(1 + kept):.2f}: a low loss says little",
            where="config.data.source_run",
            do="Mix sources more finely (config.data.source_run), read explicit negatives "
            "(config.data.negatives, job mine), or leave out sources with few targets.",
        )


def different_targets(settings: config.TrainConfig, sample: Sample, pairs: int) -> float:
    """Different candidates of so many pairs, as expected of batches drawn from the sample."""
    by_source: dict[str, list[int]] = {}
    for number, pair in enumerate(sample.pairs):
        by_source.setdefault(pair.source, []).append(number)
    names = sorted(by_source)
    weights = np.array([sample.weights[name] for name in names])
    generator = np.random.default_rng(settings.seed)
    run = max(1, min(settings.data.source_run or 1, pairs))
    counts = []
    for _ in range(BATCHES):
        seen: set[bytes] = set()
        new = 0.0  # targets of rows beyond the sample, of which many are drawn
        for _ in range(math.ceil(pairs / run)):
            name = names[generator.choice(len(names), p=weights / weights.sum())]
            own = by_source[name]
            drawn = generator.choice(own, min(run, len(own)), replace=False)
            of_run = {
                target
                for number in drawn.tolist()
                for target in (
                    sample.pairs[number].positive,
                    *sample.pairs[number].negatives[: settings.data.negatives],
                )
            }
            if run > len(own) and sample.rows[name] > len(own):
                distinct = len(of_run) / len(own)
                new += (run - len(own)) * distinct if distinct > FEW else 0.0
            seen |= of_run
        counts.append(len(seen) + new)
    return float(np.mean(counts))


def _check_passes(
    report: Report, facts: dict[str, Any], settings: config.TrainConfig, sample: Sample
) -> None:
    rows = sum(sample.rows.values())
    drawn = settings.steps * settings.batch_size
    passes = drawn / max(rows, 1)
    facts["passes"] = f"{passes:.3g} over {rows} rows in {settings.steps} steps"
    if settings.batch_size > rows:
        report.add(
            "warning",
            "batches.few_rows",
            f"config.batch_size={settings.batch_size} is more than the {rows} rows that there are: "
            f"every batch repeats them, and a query has {rows - 1} negatives of other rows at most",
            where="config.batch_size",
            do="Lower it, or give more data.",
        )
        return
    if passes > PASSES and (settings.init == "pretrained" or settings.init_from):
        report.add(
            "warning",
            "batches.passes",
            f"{settings.steps} steps of {settings.batch_size} pairs are {passes:.0f} passes over "
            f"{rows} rows, which a pretrained model learns by heart",
            where="config.steps",
            do="Lower config.steps, or set it to 0 and config.epochs to 1 to 3.",
        )
    total = sum(sample.weights.values())
    for name, weight in sample.weights.items():
        own = drawn * weight / total / max(sample.rows[name], 1)
        if own > OFTEN and own > OVER_MEAN * passes:
            report.add(
                "warning",
                "batches.small_source",
                f"source {name!r} has {sample.rows[name]} rows and is drawn as often as {own:.0f} "
                f"passes over it, where all rows together have {passes:.1f}",
                where="config.data.weights",
                do="Lower its weight in config.data.weights, or draw by size "
                "(config.data.size_temperature=2).",
            )


def _check_buckets(
    report: Report,
    facts: dict[str, Any],
    settings: config.TrainConfig,
    sample: Sample,
    shapes: BatchShapes,
) -> None:
    buckets = shapes.buckets
    edges = np.array([(bucket.tokens, bucket.tiles) for bucket in buckets])
    fits: Bool[np.ndarray, "n buckets"] = np.all(sample.sizes[:, None] <= edges, axis=2)
    none = ~np.any(fits, axis=1)
    if none.any():
        tokens, tiles = sample.sizes[none].max(axis=0).tolist()
        share = float(none.mean())
        stops = 2 * share > settings.data.max_bad_share  # two items and more a row
        report.add(
            "error" if stops else "warning",
            "batches.no_bucket",
            f"{int(none.sum())} of {len(none)} items fit no bucket ({described(buckets)}), the "
            f"largest of them {tokens} tokens and {tiles} tiles; their rows are left out"
            + (", more than config.data.max_bad_share lets pass" if stops else ""),
            where="config.data.buckets",
            do=f"Give the last bucket {tokens} tokens and {tiles} tiles, or make images smaller "
            "(config.processing).",
        )
        if none.all():
            return
    sizes = sample.sizes[~none]
    of_tokens, of_tiles = bucket_padding.padding(
        sizes, np.arange(len(sizes)), shapes, pairs=2 * settings.batch_size, seed=settings.seed
    ).tolist()
    facts["padding"] = f"{of_tokens:.0%} of the real tokens, {of_tiles:.0%} of the tiles"
    taken = fits[~none].argmax(axis=1)
    _check_shares(
        report, settings, sample, shapes, [(taken == n).mean() for n in range(len(edges))]
    )
    full = [
        f"{bucket.tokens} tokens, {bucket.tiles} tiles: {(taken == n).mean():.0%} of the items, "
        f"{sizes[taken == n, 0].mean() / max(bucket.tokens, 1):.0%} full"
        for n, bucket in enumerate(buckets)
        if (taken == n).any()
    ]
    facts["buckets"] = " | ".join(full)
    noted, warned = PADDING
    if of_tokens > noted:
        report.add(
            "warning" if of_tokens > warned else "note",
            "batches.padding",
            f"padding is {of_tokens:.0%} of the real tokens, so that most of a step computes "
            f"nothing ({facts['buckets']})",
            where="config.data.buckets",
            do="Set config.data.buckets='()', and they are chosen by the lengths of the rows.",
        )


def _check_shares(
    report: Report,
    settings: config.TrainConfig,
    sample: Sample,
    shapes: BatchShapes,
    taken: Sequence[float],
) -> None:
    """Buckets with less room than the rows that belong there; `taken`: their shares of items."""
    room = settings.batch_size * (2 + shapes.negatives)
    items = settings.batch_size * len(sample.sizes) / max(len(sample.pairs), 1)
    for number, (bucket, share) in enumerate(zip(shapes.buckets, taken)):
        wanted = min(share * items / room, 1.0)
        if bucket.texts == 1 and wanted > OVERFLOW * bucket.share:
            report.add(
                "warning",
                "batches.bucket_share",
                f"config.data.buckets[{number}] ({bucket.tokens} tokens, {bucket.tiles} tiles) has "
                f"room for {bucket.share:.0%} of a batch's rows, and {wanted:.0%} belong there: "
                "the others go into larger rows",
                where="config.data.buckets",
                do=f"Give it share={min(1.0, OVERFLOW * wanted):.2f} or more.",
            )
