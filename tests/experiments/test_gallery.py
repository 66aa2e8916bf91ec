"""The gallery names every experiment, with its command and its figure.

That its claims hold is tested beside each experiment, in the files of a quick run.
"""

import re
from pathlib import Path

import experiments

ROOT = Path(experiments.__path__[0])
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_experiment_is_there():
    scripts = {path.stem for path in ROOT.glob("[a-z]*.py")}
    assert set(re.findall(r"python -m experiments\.(\w+)", TEXT)) == scripts | {
        "benchmark",
        "guide",
    }


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_figure_is_shown():
    for figure in ROOT.glob("*.png"):
        assert f"({figure.name})" in TEXT
