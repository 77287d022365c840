"""Recipes by name, by file, and in an installed package."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import unime_jax
from tests.jobs import tiny_run
from unime_jax.operations import recipes

FOLDER = tiny_run.ROOT / "experiments"


def test_a_name_is_the_file_of_this_clone():
    assert recipes.FOLDER == FOLDER
    assert recipes.names() == ["embed", "evaluate", "llave", "plan", "stage1", "stage2"]
    for name in ("stage2:qwen2_vl_7b", "stage2", "llave:llava_onevision_7b", "plan"):
        file = "experiments/" + re.sub(r"^(\w+)", r"\1.py", name)
        assert recipes.load(name).to_dict() == recipes.load(file).to_dict()
        assert recipes.name_of(name) == recipes.name_of(file) == name.partition(":")[0]


def test_a_file_of_ones_own(tmp_path):
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


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("stge2", "no such recipe; did you mean stage2? There are embed, evaluate, llave, plan,"),
        ("stage2:qwen", 'no variant "qwen"; use one of mini, llava_onevision_7b,'),
        ("/tmp/absent.py", "--config=/tmp/absent.py: there is no such file"),
        ("elsewhere/stage2.py:x", "the recipe of this package is --config=stage2"),
        ("unime_jax/paths.py", "has no function get_config"),
    ],
)
def test_what_there_is_none_of(recipe, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.load(recipe)


def test_every_recipe_describes_its_variants():
    found = recipes.described()
    assert found.keys() == set(recipes.names())
    for name, (summary, variants) in found.items():
        assert summary and "" in variants, name
        for variant in variants:
            recipes.load(f"{name}:{variant}" if variant else name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """What an installation would put into site-packages."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("unime_jax", "data_pipelines", "experiments"):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(tiny_run.ROOT / name, source / name, ignore=hidden)
    shutil.copy(tiny_run.ROOT / "setup.py", source)
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
        "print((pathlib.Path(plan.plan.model) / 'config.json').exists())\n"
    )
    out = in_installed(installed, tmp_path, "-c", script)
    assert out.splitlines() == [
        f"{installed}/unime_jax/__init__.py {installed}/unime_jax/operations/recipes "
        f"{unime_jax.__version__}",
        "True",
    ]
    for name in ("mini_nli/minilm.npz", "mini_mmeb/render.py"):
        assert (installed / "data_pipelines" / name).exists()
    assert not (installed / "experiments").exists()  # a name that others use


def test_the_installed_command_knows_its_recipes(installed, tmp_path):
    """Also beside a folder of the user's that is called experiments."""
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
