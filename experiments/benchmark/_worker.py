"""Time the jaxrnn that is imported here, as another process asks.

A request and its answer are a line of JSON each. Nothing is used here but names that every version
of jaxrnn has, and the experiments of neither checkout.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import jaxrnn

programs: dict[str, Callable[[], Any]] = {}


def build(
    cell_name: str, sizes: list[int], passes: list[str], compiles: int, seed: int, shortest: float
) -> dict[str, dict[str, Any]]:
    """Compile a cell's programs, so many times over; say what each costs.

    Returns:
        Of each pass the seconds of every compilation, the bytes of temporary memory, and how many
        calls make the shortest sample.
    """
    length, batch, features, hidden = sizes
    cell = getattr(jaxrnn, cell_name)(hidden)
    params = cell.init(jax.random.key(seed), features)
    inputs = jax.random.normal(jax.random.key(seed), (length, batch, features))

    def forward(params: Any, inputs: jax.Array) -> Any:
        return jaxrnn.unroll(cell, params, inputs)

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        return (forward(params, inputs)[1] ** 2).sum()

    functions = {"forward": forward, "gradient": jax.grad(loss, argnums=(0, 1))}
    programs.clear()
    return {name: add(name, functions[name], params, inputs, compiles, shortest) for name in passes}


def add(
    name: str,
    function: Callable[..., Any],
    params: Any,
    inputs: Any,
    compiles: int,
    shortest: float,
) -> dict[str, Any]:
    """Compile a program, to be timed by its name; say what it costs."""

    def compiled() -> tuple[Any, float]:
        jax.clear_caches()
        start = time.perf_counter()
        program = jax.jit(function).lower(params, inputs).compile()
        return program, time.perf_counter() - start

    every, seconds = zip(*(compiled() for _ in range(compiles)), strict=True)
    program = every[-1]
    programs[name] = lambda: jax.block_until_ready(program(params, inputs))
    sample(name, 1)  # the first call pays for memory that later ones find mapped
    return {
        "compile_s": seconds,
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "calls": math.ceil(shortest / sample(name, 1)),
    }


def sample(name: str, calls: int) -> float:
    """Return the seconds that a call takes, from so many in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        programs[name]()
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Answer requests until there are no more, if jaxrnn is that of the checkout."""
    checkout = Path(sys.argv[1]).resolve()
    if checkout not in Path(jaxrnn.__file__).resolve().parents:
        sys.exit(f"got jaxrnn from {jaxrnn.__file__}, expected it from {checkout}")
    for line in sys.stdin:
        request, arguments = json.loads(line)
        answer = {"build": build, "sample": sample}[request](*arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
