"""A sentence read word by word: shapes, parameters and the hidden state of an Elman network.

"What time is it ?" becomes five integers, these become five vectors, and the network reads them in
order into one hidden state. No training: what is shown here holds for any weights.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import jaxrnn
from experiments import _common

SENTENCE = "What time is it ?"
EMBEDDING_SIZE = 100
HIDDEN_SIZE = 64
# The lengths at which the parameters are counted.
LENGTHS = (5, 500)


def tokenise(sentence: str) -> tuple[np.ndarray, list[str]]:
    """Return a sentence as word indices `(1, T)`, and its words in the order of the indices."""
    vocabulary = list(dict.fromkeys(sentence.split()))
    return np.array([[vocabulary.index(word) for word in sentence.split()]]), vocabulary


def unroll_by_hand(params: jaxrnn.cells.ElmanParams, inputs: np.ndarray) -> np.ndarray:
    """Return the hidden states `(T, H)` of inputs `(T, I)`, by the recurrence in NumPy."""
    kernel, recurrent_kernel = np.asarray(params.kernel), np.asarray(params.recurrent_kernel)
    hidden = np.zeros(HIDDEN_SIZE, kernel.dtype)
    states = []
    for word in inputs:
        hidden = np.tanh(word @ kernel + hidden @ recurrent_kernel)
        states.append(hidden)
    return np.stack(states)


def count_parameters(params: Any) -> int:
    """Return how many numbers a pytree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def picture(states: np.ndarray, words: Sequence[str]) -> Any:
    """Draw the hidden state after each word as a row of colours."""
    figure, axes = plt.subplots(figsize=(11, 2.8))
    image = axes.imshow(states, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_yticks(range(len(words)), [f"“{word}”" for word in words])
    axes.set_xlabel(f"hidden unit (of {states.shape[1]})")
    axes.set_ylabel("after reading")
    axes.set_title("One hidden state, rewritten at every word", loc="left")
    axes.grid(False)
    last = (-0.5, len(words) - 1.5)
    axes.add_patch(
        Rectangle(
            last, states.shape[1], 1, fill=False, edgecolor="black", linewidth=2, clip_on=False
        )
    )
    axes.set_title("framed: all that is known of the sentence", loc="right", fontsize=9)
    figure.colorbar(image, label="activation", pad=0.02)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = _common.arguments(__doc__)
    options = parser.parse_args(arguments)  # it is so small that --quick has nothing to leave out

    indices, vocabulary = tokenise(SENTENCE)
    embedding = jaxrnn.embedding(len(vocabulary), EMBEDDING_SIZE)
    cell = jaxrnn.elman(HIDDEN_SIZE, use_bias=False)
    embedding_key, cell_key = jax.random.split(jax.random.key(options.seed))
    table = embedding.init(embedding_key)
    params = cell.init(cell_key, EMBEDDING_SIZE)

    def read(indices: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, embedded = embedding.apply(table, None, jnp.asarray(indices))
        state, outputs = jaxrnn.unroll(cell, params, embedded, time_major=False)
        return embedded, outputs, state.hidden

    embedded, outputs, last = read(indices)
    states = np.asarray(outputs[0])
    words = SENTENCE.split()
    _common.save_csv(
        options.out / "sentence.csv",
        [
            {"step": step, "word": word, "unit": unit, "hidden": float(value)}
            for step, word in enumerate(words)
            for unit, value in enumerate(states[step])
        ],
    )
    with plt.rc_context(_common.STYLE):
        _common.save_figure(options.out / "sentence.png", picture(states, words))

    shapes = [
        ("word indices", indices, "one sentence of five words"),
        ("embedding", embedded, "every word is now a vector"),
        ("  its table", table, "one row for each word of the vocabulary"),
        ("elman, all steps", outputs, "a hidden state after every word"),
        ("  its kernel", params.kernel, "from a word's vector to the hidden units"),
        ("elman, last step only", last, "one hidden state for the whole sentence"),
        ("  its kernel", params.kernel, "the same: what is returned changes no weight"),
    ]
    print(f"\n{SENTENCE} -> {indices.tolist()}\n")
    for name, array, meaning in shapes:
        print(f"{name:<22} {np.shape(array)!s:<12} {meaning}")

    print(
        f"\nparameters: {table.size:,} embedding + {params.kernel.size:,} kernel "
        f"+ {params.recurrent_kernel.size:,} recurrent kernel"
    )
    for length in LENGTHS:
        _, outputs, _ = read(np.resize(indices, (1, length)))
        print(
            f"  {length:>3} words: {count_parameters((table, params)):,}, "
            f"for hidden states of {outputs.shape}"
        )

    difference = np.abs(unroll_by_hand(params, np.asarray(embedded[0])) - states).max()
    print(f"\nlargest difference from the recurrence unrolled by hand: {difference:.1e}")


if __name__ == "__main__":
    main()
