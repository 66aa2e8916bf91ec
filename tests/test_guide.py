"""The guide's code runs, page by page, and prints what the page says."""

import re

import pytest

from experiments.guide import PAGES, blocks, run
from tests.pages import find, names, without_numbers


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = ""
    for block, printed in run(page):
        if block.language == "python":
            last = printed
            assert "nan" not in printed
        elif not block.language:
            assert without_numbers(block.text) == without_numbers(last)
    for drawn in tmp_path.iterdir():
        assert drawn.name in page.read_text(encoding="utf-8"), "a picture that the page lacks"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_pictures_and_pages_are_there(page):
    assert any(block.language == "python" for block in blocks(page))
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_names_exist(page):
    for name in names(page.read_text(encoding="utf-8")):
        find(name)
