"""Timing: samples, rounds and orders by a clock that stands still, and the header."""

import math
import random

import jax.numpy as jnp
import pytest

from experiments import _timing


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
    samples = _timing.interleave(
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
    assert log.count("fast") == 4 * math.ceil(_timing.SHORTEST / 0.003)


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


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, _timing.LEAST_ROUNDS), (15.0, 5), (1e9, 8)])
def test_rounds_end_with_the_budget(budget, rounds):
    samples, _ = interleaved({"a": 1.0, "b": 2.0}, rounds=8, budget=budget)
    assert [len(times) for times in samples.values()] == [rounds, rounds]


def test_fewer_rounds_on_request():
    samples, _ = interleaved({"a": 1.0}, rounds=1)
    assert samples == {"a": [1.0]}


def test_summary_holds_quartiles_in_milliseconds():
    summary = _timing.summary([0.005, 0.001, 0.004, 0.002, 0.003])
    assert summary == pytest.approx(
        {"median_ms": 3.0, "lower_ms": 2.0, "upper_ms": 4.0, "rounds": 5}
    )


def test_a_program_says_its_compile_time_and_memory():
    program = _timing.compile_jax(lambda x: jnp.sin(x) @ jnp.cos(x).T, jnp.ones((8, 8)))
    assert program.run().shape == (8, 8)
    assert program.first > 0
    assert program.temporary is None or program.temporary >= 0


def test_what_is_measured_is_a_table():
    programs = {
        "a": _timing.Program(lambda: None, 1.5, 2**20),
        "b": _timing.Program(lambda: None, 0.5, None),
    }
    table = _timing.measure(programs, rounds=2, budget=1.0, shuffle=random.Random(0))
    assert list(table["contender"]) == ["a", "b"]
    assert list(table["first_s"]) == [1.5, 0.5]
    assert list(table["temporary_MiB"].fillna(-1)) == [1.0, -1]
    assert (table["lower_ms"] <= table["median_ms"]).all()


def test_the_header_says_where_it_was():
    head = _timing.header()
    assert int(head["cores"]) >= 1
    assert head["versions"].startswith("jaxrnn ")
    assert "jaxlib" in head["versions"]
