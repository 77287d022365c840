"""Means over MMEB-V2's video sets, from scores of three kinds of tasks."""

import itertools

from unime_jax.evaluation.benchmarks import mmeb_v2_video


def test_means_are_of_all_18_sets_of_whatever_kind():
    names = list(mmeb_v2_video.SETS)
    assert [len(mmeb_v2_video.members(mean)) for mean in mmeb_v2_video.MEANS] == [5, 5, 5, 3, 18]
    percent = dict(zip(names, map(float, itertools.count()), strict=False))
    videos, labels = mmeb_v2_video.members("V-RET"), mmeb_v2_video.members("V-CLS")
    labels.remove("mmeb_v2_smthsmthv2")  # which has candidates of its rows' own
    choices = [n for n in names if n not in (*videos, *labels)]
    found = mmeb_v2_video.summary(
        {n: percent[n] for n in choices} | {"VOC2007": 1.0},
        {n: {"R@1": percent[n]} for n in labels} | {"visdoc_a": {"R@1": 9.0}},
        {n: {"t2v": {"R@1": percent[n]}} for n in videos} | {"coco": {"t2i": {"R@1": 9.0}}},
    )
    means = {"V-CLS": 2.0, "V-QA": 7.0, "V-RET": 12.0, "V-MRET": 16.0, "Video": 8.5}
    assert found == {"video": percent} | means
    assert mmeb_v2_video.notes(found | {"instructions": "vlm2vec"}) == [
        "Video: 8.5, the mean hit@1 of MMEB-V2's 18 video sets",
        "instructions: vlm2vec",
    ]
    assert mmeb_v2_video.summary({"VOC2007": 1.0}, {}, {}) == {} == dict(mmeb_v2_video.notes({}))
