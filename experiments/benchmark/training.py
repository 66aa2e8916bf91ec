"""How many characters a second does a whole training step take in?

The model is a character model, of an embedding, an LSTM and a dense layer, trained by Adam; its
state is carried from step to step.
"""

import random
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import _common, _timing
from experiments._timing import Program, compile_jax, sample
from experiments.benchmark import _options
from experiments.benchmark._contenders import CONTENDERS, ENGINES, choose


class Sizes(NamedTuple):
    """T, B, embedding, hidden units of the LSTM, symbols."""

    length: int = 128
    batch: int = 32
    features: int = 64
    hidden: int = 256
    symbols: int = 65


def prepare_jaxrnn(engine: Any, sizes: Sizes, seed: int) -> Program:
    """Compile a training step of embedding, LSTM and dense by Adam, the state carried."""
    model = jaxrnn.serial(
        jaxrnn.embedding(sizes.symbols, sizes.features),
        jaxrnn.rnn(jaxrnn.lstm(sizes.hidden), engine=engine),
        jaxrnn.dense(sizes.symbols),
    )
    optimizer = optax.adam(1e-3)

    def loss(params, carry, batch, key):
        inputs, targets = batch
        carry, logits = model.apply(params, carry, inputs)
        return jaxrnn.losses.softmax_cross_entropy(logits, targets), carry

    params = model.init(jax.random.key(seed))
    train_state = jaxrnn.training.init_train_state(
        params, optimizer, carry=model.initial_state((sizes.batch,))
    )
    codes = jnp.asarray(random_codes(sizes, seed))
    step = jaxrnn.train_step(loss, optimizer)
    return compile_jax(step, train_state, (codes[:-1], codes[1:]), jax.random.key(seed))


def prepare_torch(sizes: Sizes, seed: int) -> Program:
    """Make the same training step in PyTorch."""
    import torch

    torch.manual_seed(seed)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    embedding = torch.nn.Embedding(sizes.symbols, sizes.features, device=device)
    lstm = torch.nn.LSTM(sizes.features, sizes.hidden, device=device)
    dense = torch.nn.Linear(sizes.hidden, sizes.symbols, device=device)
    params = [*embedding.parameters(), *lstm.parameters(), *dense.parameters()]
    optimizer = torch.optim.Adam(params, 1e-3)
    codes = torch.as_tensor(random_codes(sizes, seed), device=device).long()
    state = None

    def run():
        nonlocal state
        optimizer.zero_grad()
        hidden, new_state = lstm(embedding(codes[:-1]), state)
        logits = dense(hidden)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes[1:].flatten())
        loss.backward()
        optimizer.step()
        state = tuple(part.detach() for part in new_state)
        return loss.item()

    return Program(run, sample(run, 1), None)


def random_codes(sizes: Sizes, seed: int) -> np.ndarray:
    shape = sizes.length + 1, sizes.batch
    return np.random.default_rng(seed).integers(0, sizes.symbols, shape, dtype=np.int32)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare training steps of one model."""
    parser = _options.parser("training", __doc__)
    _options.add_contenders(parser)
    parser.set_defaults(sizes=Sizes())
    arguments = _common.parse(parser, argv, repeats=3, minutes=0.2, sizes=Sizes(hidden=64))
    head = _options.begin(arguments)
    # The other libraries have no training step of their own to compare with.
    names = [name for name in arguments.contenders if CONTENDERS[name].group != "JAX"]
    if not names:
        sys.exit("nothing was measured: choose pytorch or one of jaxrnn's contenders")
    sizes, seed = arguments.sizes, arguments.seed
    programs = {
        name: prepare_torch(sizes, seed)
        if name == "pytorch"
        else prepare_jaxrnn(ENGINES[name.removeprefix("jaxrnn-")], sizes, seed)
        for name in choose(names, "float32")
    }
    rows = _timing.measure(
        programs,
        rounds=arguments.repeats,
        budget=60 * arguments.minutes,
        shuffle=random.Random(seed),
    )
    rows["characters_per_s"] = 1e3 * sizes.length * sizes.batch / rows["median_ms"]
    _common.save_csv(arguments.out / "training.csv", rows.assign(**sizes._asdict(), **head))
    print(
        f"\na training step on {sizes.length} characters of {sizes.batch} texts, {sizes.symbols} "
        f"different ones: embedding of {sizes.features}, LSTM of {sizes.hidden} units"
    )
    _common.print_table(rows)


if __name__ == "__main__":
    main()
