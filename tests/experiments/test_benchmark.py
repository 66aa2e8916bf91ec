"""The benchmarks: contenders compute the same, tables hold what they say, commands write them."""

import functools
import importlib.util
import math
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrnn
from experiments import benchmark
from experiments._timing import Program
from experiments.benchmark import (
    _checkouts,
    _contenders,
    loss,
    report,
    scaling,
    shapes,
    streaming,
    sweep,
    training,
)
from experiments.benchmark.__main__ import COMMANDS, main
from experiments.benchmark._contenders import CELLS, CONTENDERS, Problem
from tests.tolerances import FLOAT32

T, B, I, H = 7, 3, 4, 5

OURS = [name for name, contender in CONTENDERS.items() if contender.group == "jaxrnn"]
PEERS = [
    name
    for name, contender in CONTENDERS.items()
    if contender.group in ("JAX", "PyTorch") and not contender.gpu_only
]


def test_a_peer_that_fails_is_left_out(monkeypatch, capsys):
    def fail(*arguments):
        raise ValueError("Unknown output type bfloat16")

    for name in ("flax", "jaxrnn-scan"):
        monkeypatch.setitem(CONTENDERS, name, CONTENDERS[name]._replace(prepare=fail))
    problem = Problem("gru", T, B, I, H)
    assert _contenders.prepare(problem, "forward", ["flax"], 0) == {}
    said = capsys.readouterr().out
    assert said == "left out here: flax, which raised ValueError: Unknown output type bfloat16\n"
    with pytest.raises(ValueError, match="bfloat16"):
        _contenders.prepare(problem, "forward", ["jaxrnn-scan"], 0)


def test_flops_are_those_of_the_products():
    # The product of a vector of 2 + 3 numbers with 4 gates of 3, for 5 steps of 7 examples.
    assert _contenders.flops(Problem("lstm", 5, 7, 2, 3), "forward") == 5 * 7 * 2 * (2 + 3) * 4 * 3
    assert _contenders.flops(Problem("elman", 1, 1, 1, 1), "gradient") == 3 * 4


def rows(*lines):
    """Make a table of contenders' medians, as `shapes` measures it."""
    columns = ["contender", "median_ms", "cell", "pass", "T, B, I, H"]
    default = ("gru", "forward", "7, 3, 4, 5")
    table = pd.DataFrame([(*line, *default[len(line) - 2 :]) for line in lines], columns=columns)
    return table.assign(first_s=0.5, lower_ms=1.0, upper_ms=3.0, dtype="float32")


def test_comparison_sets_the_fastest_beside_the_fastest():
    theirs = [("flax", 6.0), ("haiku", 3.0), ("pytorch", 1.0)]
    table = shapes.compare(rows(*theirs, ("jaxrnn-scan", 4.0), ("jaxrnn-default", 2.0)))
    (line,) = table.to_dict("records")
    assert (line["jaxrnn"], line["JAX peer"], line["jaxrnn ms"]) == ("default", "haiku", 2.0)
    assert (line["peer/jaxrnn"], line["PyTorch/jaxrnn"]) == (1.5, 0.5)
    assert line["compile s"] == 0.5


def test_comparison_without_rivals():
    (line,) = shapes.compare(rows(("jaxrnn-scan", 4.0))).to_dict("records")
    assert line["jaxrnn"] == "scan"
    assert np.isnan([line[ratio] for ratio in shapes.RATIOS]).all()
    assert shapes.compare(rows(("flax", 4.0))).empty


def test_comparisons_are_each_of_its_case_in_the_order_of_the_rows():
    cases = [("lstm", "forward"), ("elman", "gradient"), ("elman", "forward")]
    lines = [
        (name, median * number, *case)
        for number, case in enumerate(cases, start=1)
        for name, median in [("flax", 6.0), ("jaxrnn-scan", 2.0)]
    ]
    table = shapes.compare(rows(*lines))
    assert list(zip(table["cell"], table["pass"], strict=True)) == cases
    assert list(table["jaxrnn ms"]) == [2.0, 4.0, 6.0]
    assert list(table["peer/jaxrnn"]) == [3.0, 3.0, 3.0]


def test_geometric_means_are_taken_for_each_cell_and_pass():
    ratios = [(2.0, 1.0, 3.0), (8.0, None, 3.0), (3.0, 0.5, 1.0)]
    table = pd.DataFrame(ratios, columns=shapes.RATIOS)
    table = table.assign(**{"cell": ["gru", "gru", "lstm"], "pass": "forward"})
    gru, lstm = shapes.geometric_means(table).to_dict("records")
    assert (gru["cell"], gru["shapes"]) == ("gru", 2)
    assert np.isnan(gru["PyTorch/jaxrnn"])
    assert gru["peer/jaxrnn"] == pytest.approx(4.0)
    assert gru["PyTorch/sharded"] == pytest.approx(3.0)
    assert lstm["PyTorch/jaxrnn"] == pytest.approx(0.5)


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_a_divided_batch_is_compared_with_pytorch_only():
    even, odd = (Problem("gru", T, batch, I, H) for batch in (4, 3))
    assert list(_contenders.prepare(even, "forward", ["jaxrnn-sharded"], 0)) == ["jaxrnn-sharded"]
    assert _contenders.prepare(odd, "forward", ["jaxrnn-sharded"], 0) == {}
    medians = [("flax", 6.0), ("pytorch", 2.0), ("jaxrnn-scan", 4.0), ("jaxrnn-sharded", 1.0)]
    (line,) = shapes.compare(rows(*medians)).to_dict("records")
    assert [line[ratio] for ratio in shapes.RATIOS] == [1.5, 0.5, 2.0]


def test_one_device_has_no_batch_to_divide(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None])
    assert "one device only" in str(_contenders.why_left_out("jaxrnn-sharded", "float32"))
    assert _contenders.why_left_out("jaxrnn-scan", "float32") is None


@pytest.mark.parametrize(
    ("cell", "pass_"), [("elman", "forward"), *((cell, "gradient") for cell in CELLS)]
)
@pytest.mark.slow
def test_our_contenders_agree(cell, pass_):
    programs = _contenders.prepare(Problem(cell, T, B, I, H), pass_, OURS, seed=0)
    reference = programs["jaxrnn-scan"].run()
    for program in programs.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), program.run(), reference
        )


@pytest.mark.peers
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_the_same_amount(name, cell):
    if importlib.util.find_spec(CONTENDERS[name].package) is None:
        pytest.skip(f"{name} is not installed: it comes with the extra 'peers'")
    if cell not in CONTENDERS[name].cells:
        pytest.skip(f"{name} has no such cell")
    problem = Problem(cell, T, B, I, H)
    shape = (T, B) if CONTENDERS[name].layout == "TB" else (B, T)

    state, outputs = CONTENDERS[name].prepare(problem, "forward", 0).run()
    assert outputs.shape == (*shape, H)
    assert np.isfinite(np.asarray(outputs)).all()
    # Each has a tanh, of both signs. A relu has nothing below zero, and takes less time.
    assert np.asarray(outputs).min() < 0 < np.asarray(outputs).max()
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(state)]
    assert sizes == [B * H] * (2 if cell == "lstm" else 1)

    params, inputs = CONTENDERS[name].prepare(problem, "gradient", 0).run()
    assert inputs.shape == (*shape, I)
    assert np.isfinite(np.asarray(inputs)).all()
    # Keras' GRU holds two biases as a matrix of two rows.
    matrices = [
        leaf for leaf in jax.tree.leaves(params) if len(leaf.shape) == 2 and leaf.shape[0] > 2
    ]
    weights = sum(math.prod(leaf.shape) for leaf in matrices)
    assert 2 * T * B * weights == _contenders.flops(problem, "forward")
    assert all(np.asarray(leaf).any() for leaf in matrices)


@pytest.mark.slow
def test_memory_grows_with_the_length_under_scan():
    short, long = (scaling.prepare("jaxrnn-scan", n, "float32", 0) for n in (20, 200))
    assert short.temporary is not None
    assert long.temporary is not None
    # Each step keeps its hidden and its cell state at least.
    assert long.temporary - short.temporary >= 180 * 2 * 64 * 4
    gradient = long.run()
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in gradient)


def test_programs_too_large_are_left_out_with_a_line(capsys):
    small, large, unknown = (Program(lambda: None, 0.0, size) for size in (2**29, 2**31, None))
    programs = {"small": small, "large": large, "unknown": unknown}
    assert list(scaling.drop_large(programs, 1.0)) == ["small", "unknown"]
    assert capsys.readouterr().out == "left out: large needs 2.0 GiB\n"


TINY = ["--repeats", "2", "--minutes", "0.1"]
TWO = ["--contenders", "jaxrnn-default", "jaxrnn-scan"]


def test_every_command_has_its_help(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"usage: python -m experiments.benchmark {command}" in capsys.readouterr().out
        assert f"`{command}`" in str(benchmark.__doc__)


def test_shapes_writes_its_table_and_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shapes, "matrix_peak", lambda dtype: 1e9)
    sizes = ["--shapes", f"{T},{B},{I},{H}", "--cells", "elman"]
    main(["shapes", *TINY, *TWO, *sizes, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "shapes.csv")
    assert len(table) == 4  # two contenders, two passes
    assert (table["lower_ms"] > 0).all()
    assert (table["lower_ms"] <= table["median_ms"]).all()
    assert (table["median_ms"] <= table["upper_ms"]).all()
    for line in table.to_dict("records"):
        count = _contenders.flops(Problem("elman", T, B, I, H), line["pass"])
        assert line["of_peak"] == pytest.approx(count / line["median_ms"] * 1e3 / 1e9)
    assert (tmp_path / "shapes.png").read_bytes().startswith(b"\x89PNG")
    assert "jaxrnn's fastest engine" in capsys.readouterr().out


@pytest.mark.parametrize("cells", [["lstm"], ["elman", "lstm", "gru"]])
def test_a_title_is_clear_of_the_legend(cells):
    table = rows(*[(name, 2.0, cell) for name in _contenders.DEFAULT_CONTENDERS for cell in cells])
    figure = shapes.draw(table, "Some Processor With a Name That Goes On @ 2.00GHz")
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert not title.overlaps(figure.legends[0].get_window_extent())


@pytest.mark.slow
def test_scaling_writes_its_table_and_figure(tmp_path):
    lengths = ["--lengths", "50", "5"]
    main(["scaling", *TINY, *TWO[:-1], *lengths, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "scaling.csv")
    assert list(table["length"]) == [5, 50]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_steps_agree_whatever_the_engine(tmp_path, monkeypatch):
    sizes = training.Sizes(6, 4, 3, 5, 7)
    engines = [jaxrnn.engines.scan(), jaxrnn.engines.hoisted(), jaxrnn.engines.checkpointed()]
    first, *others = (training.prepare_jaxrnn(engine, sizes, 0) for engine in engines)
    expected = first.run()
    for program in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), program.run(), expected
        )
    monkeypatch.setattr(training, "Sizes", lambda **_: sizes)
    main(["training", *TINY, *TWO, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "training.csv")
    assert list(table["contender"]) == ["jaxrnn-default", "jaxrnn-scan"]
    np.testing.assert_allclose(table["characters_per_s"], 24e3 / table["median_ms"])


def test_training_is_of_pytorch_and_our_own():
    with pytest.raises(SystemExit, match="nothing was measured"):
        main(["training", "--contenders", "flax"])


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_by_hand_is_the_cells(cell):
    ours, theirs = (program.run() for program in streaming.prepare(cell, 3, seed=0).values())
    jax.tree.map(functools.partial(np.testing.assert_allclose, **FLOAT32), ours, theirs)


def test_streaming(tmp_path):
    main(["streaming", *TINY, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "streaming.csv")
    assert set(table["contender"]) == {"cell.step", "by hand"}
    assert set(table["cell"]) == set(CELLS)


@pytest.mark.slow
def test_a_loss_on_the_way_has_the_gradient_of_one_at_once(tmp_path, monkeypatch):
    programs = loss.prepare((6, 2, 3, 4, 5), 0)
    once, way = (programs[name].run() for name in ("unroll", "unroll_loss"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), way, once)
    monkeypatch.setattr(loss, "SHAPES", [(6, 2, 3, 4, 5)])
    main(["loss", *TINY, "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "loss.csv")
    assert list(table["contender"]) == ["unroll", "unroll_loss"]
    assert list(table["T"]) == [6, 6]


@pytest.mark.slow
def test_a_sweep_is_timed_against_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "SIZES", [sweep.Sizes(3, 4, 2, 3)])
    main(["sweep", "--cells", "gru", "--repeats", "1", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table["run"]) == ["fit-default", "sweep-default", "fit-scan", "sweep-scan"]
    one = table["run"].str.startswith("fit")
    assert table["times one"][one].min() == 1
    assert (table["ms a step"] > 0).all()
    least = table["whole s"][one].min()
    np.testing.assert_allclose(table["times one whole"], table["whole s"] / least)
    # Compiling takes longer than these steps.
    assert (table["whole s"] > table["ms a step"] * sweep.REPORTS * sweep.STEPS / 1e3).all()
    np.testing.assert_allclose(table["times apart"], np.where(one, 3, 1) * table["times one"] / 3)


ROOT = Path(jaxrnn.__file__).parents[1]


def test_two_checkouts_are_compared(tmp_path, capsys):
    # With itself, which is as fast, as large and as long to compile, but for the clock.
    sizes = ["--shapes", f"{T},{B},{I},{H}", "6,2,3,4", "--cells", "elman"]
    against = ["--against", str(ROOT)]
    main(["shapes", *TINY, *sizes, *against, "--passes", "gradient", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "against.csv")
    assert list(table["T, B, I, H"]) == [f"{T}, {B}, {I}, {H}", "6, 2, 3, 4"]
    assert (table["memory"] == 1).all()
    for name in ("base ms", "new ms", "base compile s", "new compile s", "speed", "compile"):
        assert (table[name] > 0).all()
    means = _checkouts.geometric_means(table)
    assert list(means["cell"]) == ["elman", "all", "the worst"]
    assert means["speed"][0] == pytest.approx(math.sqrt(math.prod(table["speed"])))
    assert means["speed"][2] == table["speed"].min()
    assert means["compile"][2] == table["compile"].max()
    assert "geometric means" in capsys.readouterr().out


def test_a_worker_that_ends_ends_the_script(tmp_path):
    (tmp_path / "jaxrnn").mkdir()
    (tmp_path / "jaxrnn" / "__init__.py").write_text("raise SystemExit('no such version')")
    with pytest.raises(SystemExit, match="ended"):
        main(["shapes", "--against", str(tmp_path), "--out", str(tmp_path)])


def test_another_checkout_has_a_jaxrnn(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["shapes", "--against", str(tmp_path)])
    assert "expected a checkout of jaxrnn" in capsys.readouterr().err


HEAD = {"device": "A Processor", "cores": 2, "devices": 1, "load": 0.1, "versions": "jax 1"}


@pytest.fixture
def measured(tmp_path):
    """A folder with two files that were measured, and a page to write to."""
    head = {**HEAD, "date": "2000-01-01"}
    lines = [("flax", 6.0), ("jaxrnn-scan", 2.0), ("pytorch", 1234.5)]
    rows(*lines).assign(**head).to_csv(tmp_path / "shapes.csv", index=False)
    steps = {"median_ms": 0.01, "first_s": 0.5, "temporary_MiB": None, "cell": "gru", "H": 64}
    streamed = pd.DataFrame([{"contender": name, **steps} for name in ("cell.step", "by hand")])
    streamed.assign(**head).to_csv(tmp_path / "streaming.csv", index=False)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return tmp_path, page


def test_a_report_stands_between_the_markers(measured):
    folder, page = measured
    command = ["report", "--out", str(folder), "--page", str(page)]
    main(command)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == ["### Cells and shapes", "### One step"]
    assert "A Processor, 2 cores, 1 JAX device(s), load 0.1 at the start; jax 1; 2000-01" in text
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert ["", "gru", "forward", "1", "3", "617", ""] in cells
    assert ["", "gru", "64", "by hand", "0.01", "0.5", ""] in cells
    main(command)
    assert page.read_text() == text


@pytest.mark.parametrize("markers", ["", report.BEGIN, report.END + report.BEGIN])
def test_a_page_without_markers_stays(measured, markers):
    folder, page = measured
    page.write_text(markers)
    with pytest.raises(SystemExit, match="once each"):
        main(["report", "--out", str(folder), "--page", str(page)])
    assert page.read_text() == markers


def test_a_report_of_nothing_ends_the_script(tmp_path):
    with pytest.raises(SystemExit, match="found none of"):
        main(["report", "--out", str(tmp_path)])


def test_the_page_has_its_markers():
    report.replace(report.PAGE.read_text(encoding="utf-8"), "")


@pytest.mark.peers
def test_pytorch_trains_the_same_model():
    pytest.importorskip("torch")
    sizes = training.Sizes(6, 4, 3, 5, 7)
    run = training.prepare_torch(sizes, 0).run
    # Before training, a guess among seven symbols; and training on one batch learns it by heart.
    losses = [run() for _ in range(300)]
    assert abs(losses[0] - math.log(7)) < 0.5
    assert losses[-1] < losses[0] - 0.1


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="no contender is left"):
        main(["shapes", "--contenders", "flax", "pytorch"])
    out = capsys.readouterr().out
    assert "left out: flax, as the package flax is not installed" in out
    assert "left out: pytorch, as the package torch is not installed" in out


@pytest.mark.parametrize(
    "arguments",
    [["--shapes", "1,2,3"], ["--shapes", "1,2,3,0"], ["--shapes", "a"], ["--contenders", "theano"]],
)
def test_bad_arguments_end_the_script(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["shapes", *arguments])
    assert arguments[0] in capsys.readouterr().err
