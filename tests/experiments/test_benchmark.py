import csv
import functools
import importlib.util
import math
import random

import jax
import numpy as np
import pytest

import jaxrnn
from experiments import benchmark
from experiments.benchmark import CELLS, CONTENDERS, Problem, Program
from tests.tolerances import FLOAT32

T, B, I, H = 7, 3, 4, 5

OURS = [name for name, contender in CONTENDERS.items() if contender.group == "jaxrnn"]
PEERS = [
    name
    for name, contender in CONTENDERS.items()
    if contender.group in ("JAX", "PyTorch") and not contender.gpu_only
]


class Clock:
    """A clock that stands still but while one of its runs takes its time."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def run(self, name, seconds):
        def run():
            self.now += seconds
            self.log.append(name)

        return run


def interleaved(durations, *, rounds=50, budget=1e9, seed=0):
    clock = Clock()
    samples = benchmark.interleave(
        {name: clock.run(name, seconds) for name, seconds in durations.items()},
        rounds=rounds,
        budget=budget,
        shuffle=random.Random(seed),
        clock=clock,
    )
    # The first two calls of each warm up and say how many calls a sample needs.
    return samples, clock.log[2 * len(durations) :]


def test_samples_are_seconds_of_a_call():
    durations = {"slow": 0.05, "fast": 0.003}
    samples, log = interleaved(durations, rounds=4)
    for name, seconds in durations.items():
        assert samples[name] == pytest.approx([seconds] * 4)
    assert log.count("slow") == 4
    assert log.count("fast") == 4 * math.ceil(benchmark.SHORTEST / 0.003)


def test_each_round_has_every_contender_once_in_its_own_order():
    _, log = interleaved(dict.fromkeys("abcd", 1.0), rounds=20)
    orders = ["".join(log[start : start + 4]) for start in range(0, len(log), 4)]
    assert len(orders) == 20
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > 5


def test_the_seed_decides_the_orders():
    _, first = interleaved(dict.fromkeys("abcd", 1.0), rounds=5)
    _, again = interleaved(dict.fromkeys("abcd", 1.0), rounds=5)
    _, other = interleaved(dict.fromkeys("abcd", 1.0), rounds=5, seed=1)
    assert first == again != other


def test_a_peer_that_fails_is_left_out(monkeypatch, capsys):
    def fail(*arguments):
        raise ValueError("Unknown output type bfloat16")

    for name in ("flax", "jaxrnn-scan"):
        monkeypatch.setitem(CONTENDERS, name, CONTENDERS[name]._replace(prepare=fail))
    problem = Problem("gru", T, B, I, H)
    assert benchmark.prepare(problem, "forward", ["flax"], 0) == {}
    said = capsys.readouterr().out
    assert said == "left out here: flax, which raised ValueError: Unknown output type bfloat16\n"
    with pytest.raises(ValueError, match="bfloat16"):
        benchmark.prepare(problem, "forward", ["jaxrnn-scan"], 0)


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, benchmark.LEAST_ROUNDS), (15.0, 5), (1e9, 8)])
def test_rounds_end_with_the_budget(budget, rounds):
    samples, _ = interleaved({"a": 1.0, "b": 2.0}, rounds=8, budget=budget)
    assert [len(times) for times in samples.values()] == [rounds, rounds]


def test_fewer_rounds_on_request():
    samples, _ = interleaved({"a": 1.0}, rounds=1)
    assert samples == {"a": [1.0]}


def test_summary_holds_quartiles_in_milliseconds():
    summary = benchmark.summary([0.005, 0.001, 0.004, 0.002, 0.003])
    assert summary == pytest.approx(
        {"median_ms": 3.0, "lower_ms": 2.0, "upper_ms": 4.0, "rounds": 5}
    )


def test_flops_are_those_of_the_products():
    # The product of a vector of 2 + 3 numbers with 4 gates of 3, for 5 steps of 7 examples.
    assert benchmark.flops(Problem("lstm", 5, 7, 2, 3), "forward") == 5 * 7 * 2 * (2 + 3) * 4 * 3
    assert benchmark.flops(Problem("elman", 1, 1, 1, 1), "gradient") == 3 * 4


def row(contender, median, **case):
    problem = Problem("gru", T, B, I, H)._asdict()
    return {"contender": contender, "median_ms": median, "pass": "forward", **problem, **case}


def test_comparison_sets_the_fastest_beside_the_fastest():
    theirs = [row("flax", 6.0), row("haiku", 3.0), row("pytorch", 1.0)]
    line = benchmark.compare([*theirs, row("jaxrnn-scan", 4.0), row("jaxrnn-default", 2.0)])
    assert line is not None
    assert (line["jaxrnn"], line["JAX peer"]) == ("default", "haiku")
    assert (line["peer/jaxrnn"], line["PyTorch/jaxrnn"]) == (1.5, 0.5)


def test_comparison_without_rivals():
    line = benchmark.compare([row("jaxrnn-scan", 4.0)])
    assert line is not None
    assert line["peer/jaxrnn"] is line["PyTorch/jaxrnn"] is None
    assert benchmark.compare([row("flax", 4.0)]) is None


def test_geometric_means_are_taken_for_each_cell_and_pass():
    ratios = ("peer/jaxrnn", "PyTorch/jaxrnn", "PyTorch/sharded")
    lines = [
        {"cell": cell, "pass": "forward", **dict(zip(ratios, values, strict=True))}
        for cell, values in [("gru", (2.0, 1.0, 3.0)), ("gru", (8, None, 3)), ("lstm", (3, 0.5, 1))]
    ]
    gru, lstm = benchmark.geometric_means(lines)
    assert (gru["cell"], gru["shapes"], gru["PyTorch/jaxrnn"]) == ("gru", 2, None)
    assert gru["peer/jaxrnn"] == pytest.approx(4.0)
    assert gru["PyTorch/sharded"] == pytest.approx(3.0)
    assert lstm["PyTorch/jaxrnn"] == pytest.approx(0.5)


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_a_divided_batch_is_compared_with_pytorch_only():
    even, odd = (Problem("gru", T, batch, I, H) for batch in (4, 3))
    assert list(benchmark.prepare(even, "forward", ["jaxrnn-sharded"], 0)) == ["jaxrnn-sharded"]
    assert benchmark.prepare(odd, "forward", ["jaxrnn-sharded"], 0) == {}
    rows = [
        row("flax", 6.0),
        row("pytorch", 2.0),
        row("jaxrnn-scan", 4.0),
        row("jaxrnn-sharded", 1),
    ]
    line = benchmark.compare(rows)
    assert line is not None
    assert (line["peer/jaxrnn"], line["PyTorch/jaxrnn"], line["PyTorch/sharded"]) == (1.5, 0.5, 2.0)


def test_one_device_has_no_batch_to_divide(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None])
    assert "one device only" in str(benchmark.why_left_out("jaxrnn-sharded", "float32"))
    assert benchmark.why_left_out("jaxrnn-scan", "float32") is None


@pytest.mark.parametrize(
    ("cell", "pass_"), [("elman", "forward"), *((cell, "gradient") for cell in CELLS)]
)
@pytest.mark.slow
def test_our_contenders_agree(cell, pass_):
    programs = benchmark.prepare(Problem(cell, T, B, I, H), pass_, OURS, seed=0)
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
    assert 2 * T * B * weights == benchmark.flops(problem, "forward")
    assert all(np.asarray(leaf).any() for leaf in matrices)


@pytest.mark.slow
def test_memory_grows_with_the_length_under_scan():
    short, long = (benchmark.prepare_scaling("jaxrnn-scan", n, "float32", 0) for n in (20, 200))
    assert short.temporary is not None
    assert long.temporary is not None
    # Each step keeps its hidden and its cell state at least.
    assert long.temporary - short.temporary >= 180 * 2 * 64 * 4
    gradient = long.run()
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in gradient)


def test_programs_too_large_are_left_out_with_a_line(capsys):
    small, large, unknown = (Program(lambda: None, 0.0, size) for size in (2**29, 2**31, None))
    programs = {"small": small, "large": large, "unknown": unknown}
    assert list(benchmark.drop_large(programs, 1.0)) == ["small", "unknown"]
    assert capsys.readouterr().out == "left out: large needs 2.0 GiB\n"


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TINY = ["--repeats", "2", "--minutes", "0.1", "--contenders", "jaxrnn-default", "jaxrnn-scan"]


def test_script_writes_its_table_and_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "matrix_peak", lambda dtype: 1e9)
    shapes = ["--shapes", f"{T},{B},{I},{H}"]
    benchmark.main([*TINY, *shapes, "--cells", "elman", "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "benchmark.csv")
    assert len(rows) == 4  # two contenders, two passes
    for line in rows:
        assert 0 < float(line["lower_ms"]) <= float(line["median_ms"]) <= float(line["upper_ms"])
        count = benchmark.flops(Problem("elman", T, B, I, H), line["pass"])
        rate = count / float(line["median_ms"]) * 1e3
        assert float(line["of_peak"]) == pytest.approx(rate / 1e9)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "jaxrnn's fastest engine" in capsys.readouterr().out


@pytest.mark.parametrize("cells", [["lstm"], ["elman", "lstm", "gru"]])
def test_a_title_is_clear_of_the_legend(cells):
    rows = [
        row(name, 2.0, cell=cell) | {"lower_ms": 1.0, "upper_ms": 3.0}
        for name in benchmark.DEFAULT_CONTENDERS
        for cell in cells
    ]
    figure = benchmark.draw(rows, "Some Processor With a Name That Goes On @ 2.00GHz")
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert not title.overlaps(figure.legends[0].get_window_extent())


@pytest.mark.slow
def test_script_scales(tmp_path):
    lengths = ["--lengths", "50", "5"]
    benchmark.main([*TINY[:-1], "--scaling", *lengths, "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "scaling.csv")
    assert [int(line["length"]) for line in rows] == [5, 50]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_steps_agree_whatever_the_engine(tmp_path, monkeypatch):
    sizes = benchmark.Training(6, 4, 3, 5, 7)
    engines = [jaxrnn.engines.scan(), jaxrnn.engines.hoisted(), jaxrnn.engines.checkpointed()]
    first, *others = (benchmark.prepare_training_jaxrnn(engine, sizes, 0) for engine in engines)
    expected = first.run()
    for program in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), program.run(), expected
        )
    monkeypatch.setattr(benchmark, "Training", lambda **_: sizes)
    benchmark.main([*TINY, "--training", "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "training.csv")
    assert [line["contender"] for line in rows] == ["jaxrnn-default", "jaxrnn-scan"]
    for line in rows:
        rate = 24e3 / float(line["median_ms"])
        assert float(line["characters_per_s"]) == pytest.approx(rate)


@pytest.mark.parametrize("cell", benchmark.CELLS)
def test_a_step_by_hand_is_the_cells(cell):
    ours, theirs = (
        program.run() for program in benchmark.prepare_streaming(cell, 3, seed=0).values()
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, **FLOAT32), ours, theirs)


def test_streaming(tmp_path):
    benchmark.main([*TINY, "--streaming", "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "streaming.csv")
    assert {row["contender"] for row in rows} == {"cell.step", "by hand"}


@pytest.mark.slow
def test_a_loss_on_the_way_has_the_gradient_of_one_at_once(tmp_path, monkeypatch):
    programs = benchmark.prepare_loss((6, 2, 3, 4, 5), 0)
    once, way = (programs[name].run() for name in ("unroll", "unroll_loss"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), way, once)
    monkeypatch.setattr(benchmark, "LOSS_SHAPES", [(6, 2, 3, 4, 5)])
    benchmark.main([*TINY, "--loss", "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "loss.csv")
    assert [(line["contender"], line["T"]) for line in rows] == [
        ("unroll", "6"),
        ("unroll_loss", "6"),
    ]


@pytest.mark.slow
def test_a_sweep_is_timed_against_one_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SWEEPS", [benchmark.Sweep(3, 4, 2, 3)])
    benchmark.main(["--sweep", "--cells", "gru", "--repeats", "1", "--out", str(tmp_path)])
    assert "left out" not in capsys.readouterr().out
    rows = read_csv(tmp_path / "sweep.csv")
    assert [row["run"] for row in rows] == [
        "fit-default",
        "sweep-default",
        "fit-scan",
        "sweep-scan",
    ]
    assert min(float(row["times one"]) for row in rows if row["run"].startswith("fit")) == 1
    assert all(float(row["ms a step"]) > 0 for row in rows)
    wholes = [float(row["whole s"]) for row in rows if row["run"].startswith("fit")]
    for row in rows:
        assert float(row["times one whole"]) == pytest.approx(float(row["whole s"]) / min(wholes))
        # Compiling takes longer than these steps.
        steps = benchmark.SWEEP_REPORTS * benchmark.SWEEP_STEPS
        assert float(row["whole s"]) > float(row["ms a step"]) * steps / 1e3
        calls = 3 if row["run"].startswith("fit") else 1
        assert float(row["times apart"]) == pytest.approx(calls * float(row["times one"]) / 3)


@pytest.mark.peers
def test_pytorch_trains_the_same_model():
    pytest.importorskip("torch")
    sizes = benchmark.Training(6, 4, 3, 5, 7)
    run = benchmark.prepare_training_torch(sizes, 0).run
    # Before training, a guess among seven symbols; and training on one batch learns it by heart.
    losses = [run() for _ in range(300)]
    assert abs(losses[0] - math.log(7)) < 0.5
    assert losses[-1] < losses[0] - 0.1


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="no contender is left"):
        benchmark.main(["--contenders", "flax", "pytorch"])
    out = capsys.readouterr().out
    assert "left out: flax, as the package flax is not installed" in out
    assert "left out: pytorch, as the package torch is not installed" in out


@pytest.mark.parametrize(
    "arguments",
    [["--shapes", "1,2,3"], ["--shapes", "1,2,3,0"], ["--shapes", "a"], ["--contenders", "theano"]],
)
def test_bad_arguments_end_the_script(arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert arguments[0] in capsys.readouterr().err
