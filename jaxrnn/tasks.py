"""Synthetic sequence problems with known chance levels, as pure functions of a key.

Each returns `(inputs, targets)`, time-major, and has its chance level beside it: the loss of the
best guess that remembers nothing, which a network must beat to have learnt anything.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PRNGKeyArray

from jaxrnn import _check
from jaxrnn._types import Array

__all__ = [
    "ADDING_CHANCE",
    "DELAYED_XOR_CHANCE",
    "TEMPORAL_ORDER_CHANCE",
    "adding",
    "copy_memory",
    "copy_memory_chance",
    "delayed_xor",
    "temporal_order",
]

ADDING_CHANCE: float = 1 / 6
"""Mean squared error of always answering 1 to `adding`: the variance of a sum of two uniforms."""

DELAYED_XOR_CHANCE: float = math.log(2)
"""Cross-entropy in nats of a coin toss on `delayed_xor`; its accuracy is 1/2."""

TEMPORAL_ORDER_CHANCE: float = math.log(4)
"""Cross-entropy in nats of a guess among four on `temporal_order`; its accuracy is 1/4."""


def adding(
    key: PRNGKeyArray, batch_size: int, length: int
) -> tuple[Float[Array, "T B 2"], Float[Array, "B 1"]]:
    """Adding problem: recall two marked numbers of a long sequence, and answer their sum.

    Feature 0 is uniform on [0, 1); feature 1 is 1 at one step of each half and 0 elsewhere.

    Args:
        key: a random key.
        batch_size: B, how many sequences.
        length: T, steps; at least 2.

    Returns:
        Inputs `(T, B, 2)` and targets `(B, 1)`, in float32. Answering 1 has a mean squared error of
        `ADDING_CHANCE`, 1/6.

    Raises:
        TypeError: if a size is not an integer or `key` no key.
        ValueError: if a size is too small.

    Example:
        >>> import jax, jaxrnn
        >>> inputs, targets = jaxrnn.tasks.adding(jax.random.key(0), 16, 100)
        >>> inputs.shape, targets.shape
        ((100, 16, 2), (16, 1))

    References:
        Hochreiter and Schmidhuber, "Long short-term memory", 1997, section 5.4; with one mark in
        each half as in Arjovsky, Shah and Bengio, 2016, section 4.2.
    """
    batch_size = _check.size("batch_size", batch_size)
    length = _check.size("length", length, least=2)
    value_key, first_key, second_key = jax.random.split(_check.key("key", key), 3)
    values = jax.random.uniform(value_key, (length, batch_size), jnp.float32)
    half = length // 2
    first = jax.random.randint(first_key, (batch_size,), 0, half)
    second = jax.random.randint(second_key, (batch_size,), half, length)
    steps = jnp.arange(length)[:, None]
    marks = ((steps == first[None]) | (steps == second[None])).astype(jnp.float32)
    return jnp.stack([values, marks], axis=-1), (values * marks).sum(0)[:, None]


def copy_memory(
    key: PRNGKeyArray, batch_size: int, delay: int, *, num_symbols: int = 8, num_to_copy: int = 10
) -> tuple[Int[Array, "T B"], Int[Array, "T B"]]:
    """Copy memory problem: hold some symbols over a delay, then repeat them in order.

    Integers 1 to `num_symbols` are the symbols, 0 is blank, and `num_symbols + 1` says when to
    repeat. The inputs are the symbols, `delay - 1` blanks, the sign, and `num_to_copy` blanks.
    The targets are blank, but for the symbols at the end.

    Args:
        key: a random key.
        batch_size: B, how many sequences.
        delay: steps between the last symbol and its being asked for again; at least 1.
        num_symbols: how many different symbols.
        num_to_copy: how many symbols to hold.

    Returns:
        Inputs and targets `(delay + 2 * num_to_copy, B)`, integers from 0 to `num_symbols + 1`. The
        chance level, in nats of cross-entropy for a step, is `copy_memory_chance(delay)`.

    Raises:
        TypeError: if a size is not an integer or `key` no key.
        ValueError: if a size is too small, or there are more symbols than int32 has.

    Example:
        >>> import jax, jaxrnn
        >>> inputs, targets = jaxrnn.tasks.copy_memory(
        ...     jax.random.key(0), 1, 4, num_symbols=1, num_to_copy=3
        ... )
        >>> print(inputs[:, 0], targets[:, 0])
        [1 1 1 0 0 0 2 0 0 0] [0 0 0 0 0 0 0 1 1 1]

    References:
        Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", 2016, section 4.1.
    """
    batch_size, delay, num_symbols, num_to_copy = _sizes(
        batch_size=batch_size, delay=delay, num_symbols=num_symbols, num_to_copy=num_to_copy
    )
    if num_symbols > 2**31 - 2:
        raise ValueError(
            f"num_symbols: got {num_symbols}, expected at most {2**31 - 2}, as of int32"
        )
    key = _check.key("key", key)
    symbols = jax.random.randint(key, (num_to_copy, batch_size), 1, num_symbols + 1)

    def blank(steps: int) -> Array:
        return jnp.zeros((steps, batch_size), symbols.dtype)

    sign = jnp.full((1, batch_size), num_symbols + 1, symbols.dtype)
    inputs = jnp.concatenate([symbols, blank(delay - 1), sign, blank(num_to_copy)])
    return inputs, jnp.concatenate([blank(delay + num_to_copy), symbols])


def copy_memory_chance(delay: int, *, num_symbols: int = 8, num_to_copy: int = 10) -> float:
    """Cross-entropy of the best guess on `copy_memory` that remembers nothing, in nats for a step.

        num_to_copy * log(num_symbols) / (delay + 2 * num_to_copy)

    It knows where the blanks are, and guesses evenly among the symbols at the end.

    Args:
        delay: as in `copy_memory`.
        num_symbols: as in `copy_memory`.
        num_to_copy: as in `copy_memory`.

    Returns:
        The chance level.

    Example:
        >>> import jaxrnn
        >>> print(f"{jaxrnn.tasks.copy_memory_chance(100):.4f}")
        0.1733
    """
    delay, num_symbols, num_to_copy = _sizes(
        delay=delay, num_symbols=num_symbols, num_to_copy=num_to_copy
    )
    return num_to_copy * math.log(num_symbols) / (delay + 2 * num_to_copy)


def delayed_xor(
    key: PRNGKeyArray, batch_size: int, length: int
) -> tuple[Float[Array, "T B 2"], Int[Array, "B"]]:
    """Delayed XOR problem: do the bits at the first and the last step differ?

    Feature 0 is a random bit, -1 or 1, at each step; feature 1 is 1 at the first and last step and
    0 elsewhere. No weighted sum of the two bits answers it, so what is kept must also be combined.

    Args:
        key: a random key.
        batch_size: B, how many sequences.
        length: T, steps; at least 2, so that the delay is `length - 1`.

    Returns:
        Inputs `(T, B, 2)` in float32 and targets `(B,)`, 1 where the bits differ and 0 where not.
        The chance level is `DELAYED_XOR_CHANCE`, log 2 nats.

    Raises:
        TypeError: if a size is not an integer or `key` no key.
        ValueError: if a size is too small.

    Example:
        >>> import jax, jaxrnn
        >>> inputs, targets = jaxrnn.tasks.delayed_xor(jax.random.key(0), 16, 20)
        >>> bool(jax.numpy.all((inputs[0, :, 0] != inputs[-1, :, 0]) == targets))
        True
    """
    batch_size = _check.size("batch_size", batch_size)
    length = _check.size("length", length, least=2)
    bits = jax.random.bernoulli(_check.key("key", key), 0.5, (length, batch_size))
    marks = jnp.zeros((length, batch_size), jnp.float32).at[jnp.array([0, -1])].set(1.0)
    inputs = jnp.stack([2 * bits.astype(jnp.float32) - 1, marks], axis=-1)
    return inputs, (bits[0] ^ bits[-1]).astype(jnp.int32)


def temporal_order(
    key: PRNGKeyArray, batch_size: int, length: int
) -> tuple[Int[Array, "T B"], Int[Array, "B"]]:
    """Temporal order problem: in which order did two rare symbols come?

    Symbols 0 and 1 are X and Y, 2 to 5 distract, 6 begins and 7 ends a sequence. An X or a Y comes
    once between a tenth and two tenths of the length, and once between five and six tenths.

    Args:
        key: a random key.
        batch_size: B, how many sequences.
        length: T, steps; at least 10.

    Returns:
        Inputs `(T, B)`, integers from 0 to 7, and targets `(B,)`: 0, 1, 2, 3 for XX, XY, YX, YY.
        The chance level is `TEMPORAL_ORDER_CHANCE`, log 4 nats.

    Raises:
        TypeError: if a size is not an integer or `key` no key.
        ValueError: if a size is too small.

    Example:
        >>> import jax, jaxrnn
        >>> inputs, targets = jaxrnn.tasks.temporal_order(jax.random.key(0), 16, 100)
        >>> inputs.shape, int((inputs[:, 0] < 2).sum())         # one X or Y early, one late
        ((100, 16), 2)

    References:
        Hochreiter and Schmidhuber, "Long short-term memory", 1997, section 5.6, task 6a.
    """
    batch_size = _check.size("batch_size", batch_size)
    length = _check.size("length", length, least=10)
    keys = jax.random.split(_check.key("key", key), 4)
    first = jax.random.randint(keys[0], (batch_size,), length // 10, 2 * length // 10)
    second = jax.random.randint(keys[1], (batch_size,), 5 * length // 10, 6 * length // 10)
    rare = jax.random.randint(keys[2], (2, batch_size), 0, 2)
    inputs = jax.random.randint(keys[3], (length, batch_size), 2, 6)
    inputs = inputs.at[0].set(6).at[-1].set(7)
    column = jnp.arange(batch_size)
    inputs = inputs.at[first, column].set(rare[0]).at[second, column].set(rare[1])
    return inputs, 2 * rare[0] + rare[1]


def _sizes(**sizes: int) -> list[int]:
    return [_check.size(name, size) for name, size in sizes.items()]
