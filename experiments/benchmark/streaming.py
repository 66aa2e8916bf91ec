"""What does a step of one sequence cost, against the same equations written by hand?

A jitted `cell.step`, B = 1 and as many inputs as hidden units, called once for each step.
"""

import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

import jaxrnn
from experiments import _common, _timing
from experiments._timing import Program
from experiments.benchmark import _options
from experiments.benchmark._contenders import CELLS, LABELS

SIZE = 64


def elman_by_hand(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Return the new state and the output of a step of an Elman network."""
    total = inputs @ params.kernel + state.hidden @ params.recurrent_kernel + params.bias
    hidden = jnp.tanh(total)
    return jaxrnn.cells.ElmanState(hidden), hidden


def lstm_by_hand(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Return the new state and the output of a step of an LSTM."""
    total = inputs @ params.kernel + state.hidden @ params.recurrent_kernel + params.bias
    i, f, g, o = jnp.split(total, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return jaxrnn.cells.LSTMState(hidden, cell), hidden


def gru_by_hand(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Return the new state and the output of a step of a GRU."""
    r, z, n = jnp.split(inputs @ params.kernel + params.bias, 3, axis=-1)
    recurrent = state.hidden @ params.recurrent_kernel + params.recurrent_bias
    of_r, of_z, of_n = jnp.split(recurrent, 3, axis=-1)
    z = jax.nn.sigmoid(z + of_z)
    hidden = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + of_r) * of_n) + z * state.hidden
    return jaxrnn.cells.GRUState(hidden), hidden


BY_HAND = {"elman": elman_by_hand, "lstm": lstm_by_hand, "gru": gru_by_hand}


def prepare(name: str, hidden: int, seed: int) -> dict[str, Program]:
    """Compile a cell's step on one sequence, and the one by hand; calls go through `jax.jit`."""
    cell = CELLS[name](hidden)
    keys = jax.random.split(jax.random.key(seed))
    params, inputs = cell.init(keys[0], hidden), jax.random.normal(keys[1], (1, hidden))
    state = cell.initial_state((1,))

    def program(step: Callable[..., Any]) -> Program:
        run = functools.partial(jax.jit(step), params, state, inputs)
        start = time.perf_counter()
        jax.block_until_ready(run())
        return Program(
            lambda: jax.block_until_ready(run()), time.perf_counter() - start, temporary=None
        )

    return {"cell.step": program(cell.step), "by hand": program(BY_HAND[name])}


def main(argv: Sequence[str] | None = None) -> None:
    """Compare a jitted `cell.step` with a step by hand."""
    parser = _options.parser("streaming", __doc__)
    _options.add_cells(parser)
    arguments = _common.parse(parser, argv, repeats=3, minutes=0.2, cells=["lstm"])
    head = _options.begin(arguments)
    tables = []
    for cell in arguments.cells:
        print(f"\n{LABELS[cell]}, one step, B = 1, I = H = {SIZE}", flush=True)
        table = _timing.measure(
            prepare(cell, SIZE, arguments.seed),
            rounds=arguments.repeats,
            budget=60 * arguments.minutes / len(arguments.cells),
            shuffle=random.Random(arguments.seed),
        )
        _common.print_table(table)
        tables.append(table.assign(cell=cell, H=SIZE))
    _common.save_csv(arguments.out / "streaming.csv", pd.concat(tables).assign(**head))


if __name__ == "__main__":
    main()
