"""What does a loss on every step cost, added up on the way or all at once?

The gradient of an LSTM's mean cross-entropy, by `jaxrnn.unroll_loss` and of `jaxrnn.unroll`'s
outputs.
"""

import functools
import random
from collections.abc import Sequence

import jax
import optax
import pandas as pd

import jaxrnn
from experiments import _common, _timing
from experiments._timing import Program, compile_jax
from experiments.benchmark import _options

FIELDS = ["T", "B", "I", "H", "symbols"]
SHAPES = [(512, 32, 64, 256, 65), (1000, 32, 64, 128, 1000), (2000, 8, 32, 64, 5000)]


def prepare(sizes: Sequence[int], seed: int) -> dict[str, Program]:
    """Compile the gradient of an LSTM's mean cross-entropy, in two ways."""
    length, batch, features, hidden, symbols = sizes
    cell = jaxrnn.lstm(hidden)
    keys = jax.random.split(jax.random.key(seed), 4)
    params = cell.init(keys[0], features), jax.random.normal(keys[1], (hidden, symbols)) / hidden
    inputs = jax.random.normal(keys[2], (length, batch, features))
    labels = jax.random.randint(keys[3], (length, batch), 0, symbols)

    def cross_entropy(readout, outputs, labels):
        logits = outputs @ readout
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    def at_once(params, inputs, labels):
        _, outputs = jaxrnn.unroll(cell, params[0], inputs)
        return cross_entropy(params[1], outputs, labels) / labels.size

    def on_the_way(params, inputs, labels):
        loss = functools.partial(cross_entropy, params[1])
        return jaxrnn.unroll_loss(loss, cell, params[0], inputs, labels)[1] / labels.size

    return {
        name: compile_jax(jax.grad(loss), params, inputs, labels)
        for name, loss in {"unroll": at_once, "unroll_loss": on_the_way}.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare `unroll_loss` with a loss on all outputs."""
    parser = _options.parser("loss", __doc__)
    parser.set_defaults(shapes=SHAPES)
    arguments = _common.parse(parser, argv, repeats=3, minutes=0.2, shapes=[(100, 8, 32, 64, 65)])
    head = _options.begin(arguments)
    tables = []
    for sizes in arguments.shapes:
        print(f"\n{', '.join(FIELDS)} = {', '.join(map(str, sizes))}", flush=True)
        table = _timing.measure(
            prepare(sizes, arguments.seed),
            rounds=arguments.repeats,
            budget=60 * arguments.minutes / len(arguments.shapes),
            shuffle=random.Random(arguments.seed),
        )
        _common.print_table(table)
        tables.append(table.assign(**dict(zip(FIELDS, sizes, strict=True))))
    _common.save_csv(arguments.out / "loss.csv", pd.concat(tables).assign(**head))


if __name__ == "__main__":
    main()
