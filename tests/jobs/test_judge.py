"""Job judge: scores against transformers, kills, bad rows, and a training on what it writes."""

import base64
import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from experiments import judge as experiment
from experiments import mine as mine_experiment
from experiments import unime_v2
from tests import children
from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_5_vl
from tests.jobs import killed_judge, tiny_run
from tests.models.oracle import pair_of, picture, torch_logits
from unime_jax import config, config_reader
from unime_jax.backbones.preprocessing import judge_prompt
from unime_jax.batch import Item, Media
from unime_jax.data.pairs import open_pairs
from unime_jax.data.schema import to_example
from unime_jax.data.settings import Bucket
from unime_jax.jobs import judge, judge_model, mine, train

TEXT = DECODER | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
WORDING = judge_prompt.PROMPTS["unime_v2"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "model"
    return pair_of(write_qwen2_5_vl(folder, mrope_section=(2, 3, 3), text=TEXT))


@pytest.fixture(scope="module")
def given(pair, tmp_path_factory):
    """Seven rows with images in files and inside, three a file; the fourth has no such image."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "a.png").write_bytes(picture(41, 43, 1))
    inside = base64.b64encode(picture(20, 30, 2)).decode()
    rows = [
        {
            "id": f"row {n}",
            "query": {"text": f"<|image_1|>\nquestion {n}", "image": "a.png"}
            if n % 2
            else f"q {n}",
            "positive": f"answer {n}",
            # The second is asked once, though it is there twice.
            "negatives": [{"text": "", "image": inside}, f"wrong {n}", f"wrong {n}"][: 3 - n % 3],
        }
        for n in range(7)
    ]
    rows[3]["query"]["image"] = "b.png"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(pair, folder)


def make_config(pair, folder):
    values = experiment.get_config()
    values.backbone, values.max_length = str(pair.backbone.folder), 512
    values.data.folder, values.data.train, values.data.block = str(folder), "pairs.jsonl", 3
    values.batch_size = 8
    return values


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def straight(given, one_device, tmp_path_factory):
    """A run that nothing disturbed. Read-only."""
    workdir = tmp_path_factory.mktemp("straight")
    judge.run(given, workdir)
    return workdir


def examples(workdir):
    ((_, source),) = open_pairs(workdir / "rows", {}).items()
    return [to_example("pairs", source[n], str(n)) for n in range(len(source))]


def content(workdir):
    rows = workdir / "rows"
    return {str(f.relative_to(rows)): f.read_bytes() for f in rows.rglob("*") if f.is_file()}


def test_scores_are_those_of_transformers(pair, given, straight, caplog):
    # The turn is UniME-V2's.
    golden = json.loads((tiny_run.ROOT / "tests/golden/prompts/rerank_messages.json").read_text())
    (case,) = golden["pairwise_inference"]
    args = case["args"]
    query = Item(args["qry_text"], (Media(args["qry_image"]),))
    turn = judge_prompt.messages(query, Item(args["cand_text"]), WORDING)
    assert turn == case["messages"]

    settings = config_reader.read(config.JudgeConfig, given.to_dict())
    opened = judge_model.open_judge(settings)
    # What transformers' own tokenizer makes of the turn, images left as one token each.
    turn = judge_prompt.messages(Item("q", (Media("a"),)), Item("c"), WORDING)
    rendered = opened.prompt.item(Item("<|image_1|>\nq", (Media("a"),)), Item("c")).text
    tokenizer = opened.prompt.tokenizer
    assert rendered == tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True
    )
    assert "'No'.Query:<|vision_start|><|image_pad|><|vision_end|>qCandidate:c" in rendered

    assert judge_model.shares_prefix(settings, opened) and not caplog.text
    head = dataclasses.replace(opened.backbone.lm_head, unshared="it is bidirectional")
    other = dataclasses.replace(opened.backbone, lm_head=head)
    assert not judge_model.shares_prefix(settings, dataclasses.replace(opened, backbone=other))
    assert "each prompt is encoded whole" in caplog.text and "it is bidirectional" in caplog.text

    backbone = dataclasses.replace(pair.backbone, preprocess=opened.preprocess)
    whole = dataclasses.replace(pair, backbone=backbone)
    judged = examples(straight)
    assert [example.id for example in judged] == [f"row {n}" for n in (0, 1, 2, 4, 5, 6)]
    for example in judged[:3]:
        candidates = (example.positive, *example.negatives)
        logits = np.array(
            [torch_logits(whole, opened.prompt.item(example.query, c)) for c in candidates]
        )
        answers = logits[:, list(opened.answers)].astype(np.float64)
        wanted = 1 / (1 + np.exp(answers[:, 1] - answers[:, 0]))
        np.testing.assert_allclose(example.scores, wanted, rtol=0, atol=1e-5)
    assert len(judged[0].negatives) == 3 and judged[0].scores[2] == judged[0].scores[3]
    assert judged[0].negatives[0].media[0].data == picture(20, 30, 2)
    (bad,) = (straight / "quarantine.jsonl").read_text().splitlines()
    assert "b.png" in bad and "row 3" in bad


@pytest.fixture
def plain(given, monkeypatch, tmp_path):
    """As `straight`, by a judge that compiles at once, which tests of this fixture have, too."""
    monkeypatch.setattr(judge_model, "make_answer_logits", killed_judge.plain)
    judge.run(given, tmp_path / "plain")
    return tmp_path / "plain"


def test_killed_it_goes_on_and_ends_the_same(given, plain, tmp_path):
    workdir = tmp_path / "killed"
    arguments = 2, given.to_dict(), workdir
    child = children.start(killed_judge.run, *arguments, output=tmp_path / "log")
    assert child.wait(timeout=120) == -signal.SIGKILL, child.said()
    kept = workdir / "rows" / "pairs-00000-of-00003.jsonl"
    assert kept.exists() and not kept.with_name("pairs-00001-of-00003.jsonl").exists()
    written = kept.stat().st_mtime_ns
    with pytest.raises(ValueError, match="missing"):
        open_pairs(workdir / "rows", {})  # no training on a part
    alone = given.copy_and_resolve_references()
    alone.judging.share_prefix = False  # cost, and no other question
    judge.run(alone, workdir)
    assert kept.stat().st_mtime_ns == written
    assert content(workdir) == content(plain)
    other = given.copy_and_resolve_references()
    other.judging.repetition_penalty = 1.05
    with pytest.raises(ValueError, match=r"judging.repetition_penalty: 1\.0 before, 1\.05 now"):
        judge.run(other, workdir)


def test_false_negatives_go_and_prompts_are_never_cut(given, plain, tmp_path, caplog):
    own = examples(plain)
    strict = given.copy_and_resolve_references()
    strict.judging.margin, strict.judging.keep = 0.0, 4
    with caplog.at_level("INFO"):
        judge.run(strict, tmp_path / "strict")
    (told,) = re.findall(r"(\d+) tokens were encoded; with .* candidate it is (\d+)", caplog.text)
    assert int(told[0]) < 0.7 * int(told[1])
    for before, after in zip(own, examples(tmp_path / "strict"), strict=True):
        left = [n for n, s in enumerate(before.scores[1:]) if s <= before.scores[0]]
        assert len(after.negatives) == (4 if left else 0)
        assert set(after.negatives) == {before.negatives[n] for n in left}
        assert max(after.scores) == after.scores[0] == before.scores[0]

    short = given.copy_and_resolve_references()
    short.max_length, short.data.max_bad_share = 100, 1.0
    judge.run(short, tmp_path / "short")
    said = (tmp_path / "short" / "quarantine.jsonl").read_text()
    assert "over 100 tokens, and a judge sees whole texts: raise config.max_length" in said


@pytest.fixture
def training(pair, straight):
    """UniME-V2's recipe on the judged rows."""
    values = unime_v2.get_config("own")
    values.backbone, values.data.train = str(pair.backbone.folder), str(straight / "rows")
    values.steps, values.batch_size, values.log_every, values.chunk_size = 3, 8, 1, 8
    values.loss.contrastive_weight, values.export.verify = 0.5, False
    values.optimizer.learning_rate = 1e-3
    values.data.buckets = (Bucket(tokens=64, tiles=1),)  # one program
    values.evaluation.rows = 8
    return values


def test_mined_negatives_are_judged_and_rows_without_scores_do_not_train(
    pair, given, plain, straight, training, tmp_path
):
    mining = mine_experiment.get_config()
    mining.backbone, mining.max_length, mining.batch_size = given.backbone, 512, 8
    mining.data.folder, mining.data.train = given.data.folder, given.data.train
    mining.data.max_bad_share = 0.5
    mining.search.negatives, mining.search.ratio = 2, None
    mine.run(mining, tmp_path / "mined")
    changed = given.copy_and_resolve_references()
    changed.data.mined, changed.data.mined_use = str(tmp_path / "mined"), "instead"
    judge.run(changed, tmp_path / "judged")
    own = {example.id: example for example in examples(plain)}
    judged = examples(tmp_path / "judged")
    assert len(judged) == len(own)
    for example in judged:
        assert len(example.negatives) == 2 and len(example.scores) == 3
        assert example.scores[0] == own[example.id].scores[0]
        assert not set(example.negatives) & set(own[example.id].negatives)
        assert all(0 <= score <= 1 for score in example.scores)
    with pytest.raises(ValueError, match="mined negatives"):  # another work directory is asked for
        judge.run(given, tmp_path / "judged")

    # Rows without scores do not train.
    unscored = shutil.copytree(straight / "rows", tmp_path / "unscored")
    for file in unscored.glob("*.jsonl"):
        rows = [json.loads(line) | {"scores": []} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training.data.train = str(unscored)
    with pytest.raises(ValueError, match="first row of source 'pairs' has no `scores`.*job judge"):
        train.run(training, tmp_path / "refused")


@pytest.mark.slow
def test_unime_v2_trains_on_what_was_judged(training, tmp_path):
    train.run(training, tmp_path / "run")
    lines = tiny_run.metrics(tmp_path / "run")
    assert len(lines) == 3 and lines[-1]["judge_loss"] < lines[0]["judge_loss"]
    # Of six rows in eight pairs, all have negatives.
    assert lines[0]["judged_queries"] == 8
    for line in lines:
        both = line["judge_loss"] + 0.5 * line["contrastive_loss"]
        np.testing.assert_allclose(line["loss"], both, rtol=1e-5)
