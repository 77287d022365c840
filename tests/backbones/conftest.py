"""Tiny folders that several files of tests open; no test writes to them."""

import functools

import pytest

from tests.backbones import llava_cases
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_phi3_v import write_golden, write_phi3_v, write_weights
from tests.backbones.tiny_prompts import PROMPTS, opened
from tests.backbones.tiny_qwen import write_qwen2_vl


@pytest.fixture(scope="session")
def prompt_folders(tmp_path_factory):
    """Folders of the families in `PROMPTS`."""
    return {
        "onevision": write_folder(tmp_path_factory.mktemp("onevision")),
        "mistral": write_llava_next(tmp_path_factory.mktemp("mistral"), decoder="mistral"),
        "vicuna": write_llava_next(tmp_path_factory.mktemp("vicuna"), decoder="llama"),
        "qwen2_vl": write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")),
    }


@pytest.fixture(scope="session")
def every_prompt(prompt_folders):
    """Prompts by family and style."""
    return {(family, style): opened(prompt_folders[family], style) for family, style in PROMPTS}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A pair of each family, by its model type."""
    from tests.backbones.checkpoints import PAIRS  # with PyTorch, which not every Python has

    return functools.cache(lambda name: PAIRS[name](tmp_path_factory.mktemp(name) / "base"))


@pytest.fixture(scope="session")
def folders(pairs, tmp_path_factory):
    """A whole checkpoint of each family in `checkpoints.WRITE`, written when it is asked for."""
    from tests.backbones.checkpoints import PAIRS, WRITE

    @functools.cache
    def folder(family):
        if family in PAIRS:
            return pairs(family).backbone.folder
        path = tmp_path_factory.mktemp(family) / "whole"
        WRITE[family](path)
        return path

    return folder


@pytest.fixture(scope="session")
def llavas(tmp_path_factory):
    """LLaVA folders beside transformers' processors, by name."""
    return llava_cases.make_cases(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def phi3_v_golden(tmp_path_factory):
    """The recorded Phi-3.5-Vision."""
    return write_golden(tmp_path_factory.mktemp("phi3_v") / "golden")


@pytest.fixture(scope="session")
def phi3_v_folder(tmp_path_factory):
    """A tiny Phi-3.5-Vision with weights."""
    folder = write_phi3_v(tmp_path_factory.mktemp("phi3_v") / "folder")
    write_weights(folder)
    return folder


@pytest.fixture(scope="session")
def qwen2_vl_folder(tmp_path_factory):
    """A tiny Qwen2-VL whose images have at most 10 x 10 tokens."""
    return write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"), max_pixels=100 * 64)
