"""Recipes by name, by file, and in an installed package."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import unime_jax
from experiments import plan
from tests.jobs import tiny_run
from tests.tables import for_each
from unime_jax import config, config_reader
from unime_jax.data.settings import Bucket
from unime_jax.operations import recipes

FOLDER = tiny_run.ROOT / "experiments"


def test_a_name_is_the_file_of_this_clone():
    assert recipes.FOLDER == FOLDER
    assert recipes.names() == [
        "benchmark",
        "embed",
        "evaluate",
        "judge",
        "llave",
        "merge",
        "mine",
        "own",
        "plan",
        "presets",
        "rounds",
        "stage1",
        "stage2",
        "study",
        "unime_v2",
    ]
    for name in ("stage2:qwen2_vl_7b", "stage2", "llave:llava_onevision_7b", "plan"):
        file = "experiments/" + re.sub(r"^(\w+)", r"\1.py", name)
        assert recipes.load(name).to_dict() == recipes.load(file).to_dict()
        assert recipes.name_of(name) == recipes.name_of(file) == name.partition(":")[0]

    # A recipe given as a file is planned as by name
    by_file = recipes.load("experiments/plan.py:experiments/stage2.py:qwen2_vl_7b")
    assert by_file.to_dict() == recipes.load("plan:stage2:qwen2_vl_7b").to_dict()
    assert by_file.name == "stage2:qwen2_vl_7b"


def test_a_file_of_ones_own_is_run_and_planned(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from unime_jax.operations.recipes import stage2\n"
        "def get_config(variant='mini'):\n"
        "    config = stage2.get_config(variant)\n"
        "    config.steps = 7\n"
        "    return config\n"
    )
    assert recipes.load(str(file)).steps == 7 and recipes.name_of(f"{file}:x") == "mine"
    assert recipes.load(f"{file}:qwen2_vl_7b").batch_size == 1024

    # A file of ones own is planned. Its batches are not known, so they are taken to be full.
    (tmp_path := tmp_path / "next").mkdir()
    file = tmp_path / "mine.py"
    file.write_text(
        "from unime_jax.data.settings import Bucket\n"
        "from unime_jax.operations.recipes import base\n"
        "def get_config(variant='large'):\n"
        "    config = base.pretrained('qwen2_vl_7b')\n"
        "    config.batch_size = {'large': 64, 'small': 32}[variant]\n"
        "    config.data.buckets = (Bucket(tokens=2048, tiles=4),)\n"
        "    return config\n"
    )
    for recipe, size in ((f"plan:{file}", 64), (f"{FOLDER}/plan.py:{file}:small", 32)):
        planned = recipes.load(recipe)
        assert planned.run.batch_size == size and planned.rows == planned.tokens == ()
        settings = config_reader.read(config.PlanConfig, planned.to_dict())
        assert settings.run.data.buckets == (Bucket(tokens=2048, tiles=4),)


def test_every_recipe_describes_its_variants():
    found = recipes.described()
    assert found.keys() == set(recipes.names())
    for name, (summary, variants) in found.items():
        assert summary and "" in variants, name
        for variant in variants:
            recipes.load(f"{name}:{variant}" if variant else name)

    # Expected batches are those of recipes and fit their buckets. One share and one length a
    # bucket; the shares are all rows.
    for recipe in plan.EXPECTED:
        planned = recipes.load(f"plan:{recipe}")
        config_reader.read(config.PlanConfig, planned.to_dict())
        if planned.rows:
            buckets = planned.run.data.buckets
            assert len(planned.rows) == len(planned.tokens) == len(buckets), recipe
            assert sum(planned.rows) == 1 and all(
                tokens <= bucket.tokens for tokens, bucket in zip(planned.tokens, buckets)
            )
        distils = planned.run.job == "train" and planned.run.loss.objective == "distillation"
        assert bool(planned.teacher) == distils, recipe


@for_each(
    ("recipe", "message"),
    [
        (
            "stge2",
            "no such recipe; did you mean stage2? There are benchmark, embed, evaluate, judge,",
        ),
        ("stage2:qwen", 'no variant "qwen"; use one of mini, mini_video, llava_onevision_7b,'),
        ("/tmp/absent.py", "--config=/tmp/absent.py: there is no such file"),
        ("elsewhere/stage2.py:x", "the recipe of this package is --config=stage2"),
        ("unime_jax/paths.py", "has no function get_config"),
        ("base", "there is no such recipe; "),  # what recipes share is none
        ("experiments/families.py", "has no function get_config"),
        ("plan:stge2", 'no plan "stge2"; use one of all, stage2_05b_lora, '),
        ("plan:stage2:qwen", "--config=stage2:qwen: no variant"),
    ],
)
def test_what_there_is_none_of(recipe, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.load(recipe)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """What an installation would put into site-packages."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("unime_jax", "data_pipelines", "experiments"):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(tiny_run.ROOT / name, source / name, ignore=hidden)
    for name in ("setup.py", "README.md"):
        shutil.copy(tiny_run.ROOT / name, source)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={folder}"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return folder


def test_an_installed_package_has_its_recipes(installed, tmp_path):
    """Also those that import others, the shapes of plans, and the generated data."""
    script = (
        "import pathlib, unime_jax, data_pipelines\n"
        "from unime_jax.operations import recipes\n"
        "print(unime_jax.__file__, recipes.FOLDER, unime_jax.__version__)\n"
        "plan = recipes.load('plan').recipes.stage1_7b_lora\n"
        "print((pathlib.Path(plan.model) / 'config.json').exists(), plan.run.batch_size)\n"
        "print(recipes.load('plan:llave').run.loss.hardness)\n"
    )
    out = in_installed(installed, tmp_path, "-c", script)
    assert out.splitlines() == [
        f"{installed}/unime_jax/__init__.py {installed}/unime_jax/operations/recipes "
        f"{unime_jax.__version__}",
        "True 768",
        "9.0",
    ]
    for name in ("mini_nli/minilm.npz", "mini_mmeb/render.py"):
        assert (installed / "data_pipelines" / name).exists()
    assert not (installed / "experiments").exists()  # a name that others use

    # The installed command knows its recipes. Also beside a folder of the user's that is called
    # experiments.
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "stage2.py").write_text("raise SystemExit('not this one')")
    shown = in_installed(
        installed, tmp_path, "-m", "unime_jax.main", "--config=llave", "--print_config"
    )
    assert f"# unime_jax {unime_jax.__version__}, --config=llave\n" in shown
    assert "config.loss.hardness = 9.0" in shown


def test_the_version_and_the_command_are_in_the_metadata(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=tiny_run.ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == unime_jax.__version__
    assert "unime-jax = unime_jax.main:run" in (tiny_run.ROOT / "setup.py").read_text()


def in_installed(installed: pathlib.Path, folder: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=tiny_run.environment(PYTHONPATH=str(installed)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
