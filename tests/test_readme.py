"""The README's Python runs, block after block, in one namespace; so do its claims about itself."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.guide import blocks
from tests.pages import find, names, without_numbers

README = Path(__file__).parents[1] / "README.md"
FENCED = blocks(README)
BLOCKS = [text for language, text in FENCED if language == "python"]


def test_the_readme_has_code():
    assert len(BLOCKS) >= 3


def of_its_own(block):
    """Say whether a block sets what must be set before JAX computes anything."""
    return "jax.config.update" in block


@pytest.mark.slow
def test_its_code_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some of it writes files
    namespace = {}
    for number, block in enumerate(BLOCKS):
        if not of_its_own(block):
            exec(compile(block, f"README.md block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "nan" not in printed
    (shown,) = (text for language, text in FENCED if not language)
    assert without_numbers(shown) == without_numbers(str(namespace["found"]))


@pytest.mark.parametrize("block", list(filter(of_its_own, BLOCKS)))
def test_its_code_runs_on_two_devices(block):
    check = "\nassert outputs.shape == (100, 16, 128)\nassert len(outputs.devices()) == 2\n"
    subprocess.run([sys.executable, "-c", block + check], cwd=README.parent, check=True)


@pytest.mark.parametrize("name", names(README.read_text("utf-8")))
def test_its_names_exist(name):
    find(name)


def test_its_files_exist():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / path).exists(), path
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        assert importlib.util.find_spec(module), module
