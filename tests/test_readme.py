"""Each of the README's Python blocks runs by itself; its claims about itself hold."""

import re
from pathlib import Path

import pytest

from experiments.guide import blocks
from tests.pages import find, names, without_numbers

README = Path(__file__).parents[1] / "README.md"
FENCED = blocks(README)
BLOCKS = [text for language, text in FENCED if language == "python"]


def test_the_readme_has_code():
    assert len(BLOCKS) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_code_runs(number, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(compile(BLOCKS[number], f"README.md block {number}", "exec"), namespace)
    assert "nan" not in capsys.readouterr().out
    if "found" in namespace:
        (shown,) = (text for language, text in FENCED if not language)
        assert without_numbers(shown) == without_numbers(str(namespace["found"]))


def test_its_length():
    assert len(README.read_text("utf-8").splitlines()) <= 200


@pytest.mark.parametrize("name", names(README.read_text("utf-8")))
def test_its_names_exist(name):
    find(name)


def test_its_files_exist():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / path).exists(), path
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        path = README.parent / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module
