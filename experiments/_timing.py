"""Timing programs against one another, and saying where it was done."""

import datetime
import importlib.metadata
import math
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

import jaxrnn

# A sample shorter than this says more of the clock and the dispatch than of the computation.
SHORTEST = 0.02
LEAST_ROUNDS = 3
# What `header` looks for besides JAX.
PACKAGES = ["jax", "jaxlib", "numpy", "flax", "dm-haiku", "equinox", "keras", "torch"]


class Program(NamedTuple):
    """A computation ready to be timed.

    `run` returns its results once they are there. `first` is the time to compile it, or where
    nothing is compiled that of the first call; `temporary` is its memory besides arguments and
    results, in bytes, or None where nothing tells it.
    """

    run: Callable[[], Any]
    first: float
    temporary: int | None


def compile_jax(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile a function for its arguments."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    # Where the program takes them, so that no call has to divide them over devices first.
    arguments = jax.device_put(arguments, compiled.input_shardings[0])
    return Program(
        lambda: jax.block_until_ready(compiled(*arguments)),
        seconds,
        None if memory is None else memory.temp_size_in_bytes,
    )


def sample(
    run: Callable[[], Any], calls: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that a call takes, from so many in a row."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    budget: float,
    shuffle: random.Random,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every run once a round, each round in a new order.

    A sample holds as many calls as make it `SHORTEST`. Rounds end early, but not before there are
    `LEAST_ROUNDS`, where one more would take longer than the budget.

    Args:
        runs: what to time, by name.
        rounds: how many rounds at most.
        budget: seconds for all rounds.
        shuffle: what draws the orders.
        clock: what tells the time in seconds.

    Returns:
        The seconds that a call took, of each run in each round.
    """
    for run in runs.values():
        run()  # the first call pays for memory that later ones find mapped
    calls = {name: math.ceil(SHORTEST / sample(run, 1, clock)) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start = clock()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and (clock() - start) * (done + 1) / done > budget:
            break
        for name in shuffle.sample(list(runs), len(runs)):
            samples[name].append(sample(runs[name], calls[name], clock))
    return samples


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles of some seconds in milliseconds, and their number."""
    lower, median, upper = (1e3 * float(q) for q in np.percentile(samples, [25, 50, 75]))
    return {
        "median_ms": median,
        "lower_ms": lower,
        "upper_ms": upper,
        "rounds": len(samples),
    }


def measure(
    programs: Mapping[str, Program], *, rounds: int, budget: float, shuffle: random.Random
) -> pd.DataFrame:
    """Time programs in turns; return a table with a row for each."""
    runs = {name: program.run for name, program in programs.items()}
    samples = interleave(runs, rounds=rounds, budget=budget, shuffle=shuffle)
    return pd.DataFrame(
        {
            "contender": name,
            **summary(samples[name]),
            "first_s": program.first,
            "temporary_MiB": None if program.temporary is None else program.temporary / 2**20,
        }
        for name, program in programs.items()
    )


def header() -> dict[str, str]:
    """Describe the machine, how busy it was in the last minute, and the software."""
    versions = [f"jaxrnn {jaxrnn.__version__}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": str(cores()),
        "devices": str(len(jax.devices())),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "backend": device.platform,
        "versions": ", ".join(versions),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
