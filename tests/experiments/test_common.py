"""What all experiments share: their common arguments, tables, and threads."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import experiments
from experiments import _common
from experiments.benchmark.__main__ import COMMANDS

ROOT = Path(experiments.__path__[0])
NAMES = sorted(path.stem for path in ROOT.glob("[a-z]*.py"))
NAMES += [f"benchmark.{command}" for command in COMMANDS if command != "report"]


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_written_or_drawn_is_refused_at_once(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    for option in ("--out=file", "--out=file/below", "--seed=-1", "--seed=4294967296"):
        with pytest.raises(SystemExit):
            importlib.import_module(f"experiments.{name}").main(["--quick", option])
        assert f"argument {option[:5].rstrip('=')}" in capsys.readouterr().err


def test_a_folder_for_results_is_made(tmp_path):
    parser = _common.arguments(None)
    assert parser.parse_args(["--out", str(tmp_path / "a" / "b")]).out == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert not Path("results").exists()
    assert parser.parse_args([]).out.is_dir()


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "text").write_text("text", encoding="utf-8-sig")
    assert _common.read_text(tmp_path / "text") == "text"


def test_what_is_not_known_is_a_dash(capsys):
    _common.print_table([{"a": np.nan, "b": None, "c": 0.0}])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["-", "-", "0"]


def test_two_at_once_keep_their_order():
    assert _common.two_at_once(lambda number: 2 * number, range(5)) == [0, 2, 4, 6, 8]


@pytest.mark.skipif(sys.platform == "win32", reason="a signal can't be sent to oneself there")
def test_threads_do_not_hold_up_an_interrupt():
    # Where tests run in the background, SIGINT may be ignored from the start.
    code = """
import os, signal, time
from experiments import _common
signal.signal(signal.SIGINT, signal.default_int_handler)
def work(_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
_common.two_at_once(work, range(4))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, timeout=30, check=False)
    assert run.returncode == -signal.SIGINT
