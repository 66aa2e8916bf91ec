"""Scans that engines are made of: over chunks of steps, and without storing anything twice."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree


def nearby_divisor(length: int, target: int) -> int:
    """Return the divisor of `length` nearest to `target`, or `target` if none is within twice.

    With a divisor all chunks are equal. Otherwise a remainder is compiled separately.
    """
    if length <= target:
        return max(length, 1)
    low, high = -(-target // 2), min(2 * target, length)
    divisors = [n for n in range(low, high + 1) if length % n == 0]
    return min(divisors, key=lambda n: max(n / target, target / n), default=target)


def sqrt_chunk(steps: int) -> int:
    """Return how many steps a chunk has for the least memory: about the square root of all.

    A length that has no value yet is one chunk.
    """
    if not isinstance(steps, int):
        return steps
    return nearby_divisor(steps, math.isqrt(steps))


def scan_chunks(
    function: Callable[[Any, PyTree, PyTree], tuple[Any, PyTree]],
    carry: Any,
    per_chunk: PyTree,
    per_step: PyTree,
    *,
    steps: int,
    chunk: int,
    reverse: bool,
) -> tuple[Any, PyTree]:
    """Scan over chunks of a sequence, the last of which may be shorter.

    Args:
        function: `(carry, of_chunk, of_steps) -> (carry, outputs)`, outputs with an entry for each
            step of the chunk.
        carry: what the first chunk to run gets.
        per_chunk: a pytree with an entry for each chunk.
        per_step: a pytree with an entry for each step.
        steps: how many steps there are.
        chunk: how many a chunk has.
        reverse: whether to begin with the last chunk.

    Returns:
        The last carry, and the outputs of all steps.
    """
    count = steps // chunk
    if count == 0 or steps == chunk:
        return function(carry, _each(lambda a: a[0], per_chunk), per_step)

    # Without axes of length 1: of the many ways to lay out such arrays XLA takes one for a sequence
    # and another for its chunks, and copies it all.
    def chunks_of(a):
        return a[: count * chunk].reshape(count, chunk, *(n for n in a.shape[1:] if n != 1))

    def run_chunk(carry, xs):
        of_chunk, chunks = xs
        of_steps = jax.tree.map(lambda a, b: a.reshape(chunk, *b.shape[1:]), chunks, per_step)
        return function(carry, of_chunk, of_steps)

    def whole(carry):
        carry, outputs = scan_without_duplicates(
            run_chunk,
            carry,
            (_each(lambda a: a[:count], per_chunk), _each(chunks_of, per_step)),
            reverse=reverse,
        )
        return carry, _each(lambda a: a.reshape(count * chunk, *a.shape[2:]), outputs)

    def rest(carry):
        return function(
            carry,
            _each(lambda a: a[count], per_chunk),
            _each(lambda a: a[count * chunk :], per_step),
        )

    if steps % chunk == 0:
        return whole(carry)
    if reverse:
        carry, last = rest(carry)
        carry, first = whole(carry)
    else:
        carry, first = whole(carry)
        carry, last = rest(carry)
    # Leaf by leaf, as functions among the outputs, which are pytrees too, are never equal.
    first, tree = jax.tree.flatten(first)
    return carry, tree.unflatten(
        [jnp.concatenate(parts) for parts in zip(first, jax.tree.leaves(last), strict=True)]
    )


def scan_checkpointed(
    function: Callable[[Any, PyTree], tuple[Any, PyTree]],
    carry: Any,
    per_step: PyTree,
    *,
    steps: int,
    chunk: int,
    reverse: bool,
) -> tuple[Any, PyTree]:
    """Scan over chunks, keeping of each only the carry that it starts from."""

    # Within a scan nothing is there for XLA to share with, so there is no need to prevent it.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run_chunk(carry, _, of_steps):
        return function(carry, of_steps)

    return scan_chunks(run_chunk, carry, None, per_step, steps=steps, chunk=chunk, reverse=reverse)


def scan_without_duplicates(
    body: Callable[[Any, Any], tuple[Any, PyTree]],
    carry: Any,
    xs: PyTree,
    *,
    reverse: bool,
    unroll: int = 1,
) -> tuple[Any, PyTree]:
    """Do as `lax.scan`, but store only once what the body returns in several places.

    A hidden state that is the output too is the commonest such thing: XLA doesn't see it where the
    gradient keeps both, and the gradient of an Elman network would take 1.2 times the memory.
    """
    restored: Any = None

    def each_once(carry: Any, x: Any) -> tuple[Any, list[Any]]:
        nonlocal restored
        carry, outputs = body(carry, x)
        kept, restored = deduplicate(outputs)
        return carry, kept

    carry, kept = lax.scan(each_once, carry, xs, reverse=reverse, unroll=unroll)
    return carry, restored(kept)


def deduplicate(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """Return each array of a tree once, and a function that puts such a list back into the tree."""
    leaves, structure = jax.tree.flatten(tree)
    kept = {id(leaf): leaf for leaf in leaves}
    places = [list(kept).index(id(leaf)) for leaf in leaves]
    return list(kept.values()), lambda kept: structure.unflatten([kept[n] for n in places])


def _each(function: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    return jax.tree.map(function, tree)
