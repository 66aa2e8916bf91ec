"""Checks of arguments: each names the argument, what came and what was expected.

A value of the wrong kind or dtype is a `TypeError`, one of the wrong size, shape or range a
`ValueError`.
"""

import difflib
import math
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxrnn._types import Array


def size(name: str, value: Any, *, least: int = 1) -> int:
    """Return `value` as an int of at least `least`."""
    number = integer(name, value)
    if number < least:
        raise ValueError(f"{name}: got {number}, expected an integer of at least {least}")
    return number


def optional_size(name: str, value: Any) -> int | None:
    """Return `value` as an int of at least 1, or None."""
    return None if value is None else size(name, value)


def integer(name: str, value: Any) -> int:
    """Return `value` as an int, refusing bools, floats and arrays."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: got {describe(value)}, expected an integer")
    return operator.index(value)


def step_counts(name: str, value: Any) -> list[int]:
    """Return `value`, a sequence of numbers of steps, as ints of at least 0."""
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        raise TypeError(f"{name}: got {describe(value)}, expected integers such as [1, 10]")
    return [size(f"{name}[{place}]", lag, least=0) for place, lag in enumerate(value)]


def number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float between `low` and `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: got {describe(value)}, expected a number")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}: got {value}, expected a finite number from {low} to {high}")
    return float(value)


def rate(name: str, value: Any) -> float:
    """Return `value`, the probability of dropping or keeping something, from 0 up to but not 1."""
    probability = number(name, value, low=0.0, high=1.0)
    if probability == 1.0:
        raise ValueError(f"{name}: got 1.0, expected less than 1")
    return probability


def flag(name: str, value: Any) -> bool:
    """Return `value`, a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: got {describe(value)}, expected True or False")
    return bool(value)


def function(name: str, value: Any) -> Callable[..., Any]:
    """Return `value`, a hashable callable: what a memoised constructor can take as a setting."""
    if not callable(value) or not isinstance(value, Hashable):
        raise TypeError(f"{name}: got {describe(value)}, expected a function")
    return value


def optional_function(name: str, value: Any) -> Callable[..., Any] | None:
    """Return `value`, a hashable callable, or None."""
    return None if value is None else function(name, value)


def key(name: str, value: Any) -> Array:
    """Return `value`, one random key of `jax.random.key` or `jax.random.PRNGKey`."""
    typed = has_kind(value, jax.dtypes.prng_key)
    if not typed and getattr(value, "dtype", None) != np.uint32:
        raise TypeError(f"{name}: got {describe(value)}, expected a key of jax.random.key")
    # Four numbers where JAX's default implementation is that of XLA.
    if value.shape not in ([()] if typed else [(2,), (4,)]):
        raise ValueError(f"{name}: got {describe(value)}, expected one key, not an array of them")
    return value


def float_dtype(name: str, value: Any) -> np.dtype:
    """Return `value` as a floating dtype that JAX will really keep."""
    try:
        # NumPy takes None for float64.
        dtype = jnp.dtype("None" if value is None else value)
    except TypeError as error:
        raise TypeError(f"{name}: got {value!r}, expected a floating dtype") from error
    # JAX has neither numbers of more than 64 bits nor those with their bytes in another order.
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 8 or not dtype.isnative:
        raise TypeError(
            f"{name}: got {dtype if dtype.isnative else dtype.str}, expected a floating dtype of "
            "JAX"
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{name}: got float64, which JAX turns into float32: give numpy.float32, or call "
            "jax.config.update('jax_enable_x64', True) before anything else"
        )
    return dtype


def optional_float_dtype(name: str, value: Any) -> np.dtype | None:
    """Return `value` as a floating dtype that JAX will really keep, or None."""
    return None if value is None else float_dtype(name, value)


def arrays(name: str, value: Any) -> None:
    """Raise unless a pytree holds arrays of NumPy or JAX, numbers in them, and none a mask."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        where = f"{name}{jax.tree_util.keystr(path)}"
        unmasked(where, leaf)
        known = isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)
        if not known or getattr(leaf, "dtype", np.dtype(int)).kind in "OSUMm":
            raise TypeError(
                f"{where}: got {describe(leaf)}, expected an array of numbers of NumPy or JAX"
            )


def unmasked(name: str, value: Any) -> None:
    """Raise on a masked array of NumPy, whose mask JAX ignores."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: got a NumPy masked array {describe(value)}, whose mask JAX ignores; expected "
            "a plain array, with the mask given as an argument of its own"
        )


def array(name: str, value: Any, *, min_ndim: int, axes: str) -> Any:
    """Return `value`, a floating array with at least `min_ndim` axes, laid out as `axes` says."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name}: got {describe(value)}, expected a floating array {axes}")
    unmasked(name, value)
    if not has_kind(value, jnp.floating):
        raise TypeError(f"{name}: got {describe(value)}, expected a floating dtype of JAX")
    if value.ndim < min_ndim:
        raise ValueError(f"{name}: got {describe(value)}, expected an array {axes}")
    float_dtype(name, value.dtype)
    return value


def integers(name: str, value: Any, *, low: int, high: int, where: Any = True) -> Any:
    """Return `value`, an integer array; its entries `where` must be from `low` to `high`.

    Within a trace entries have no values, and are let through.
    """
    unmasked(name, value)
    if not has_kind(value, jnp.integer):
        raise TypeError(f"{name}: got {describe(value)}, expected an array of integers")
    if isinstance(value, jax.core.Tracer) or isinstance(where, jax.core.Tracer):
        return value
    # In NumPy, which compares 8 bits with 1000 rightly, where JAX would wrap the 1000 around.
    numbers = np.asarray(value)
    if np.any(((numbers < low) | (numbers > high)) & np.asarray(where)):
        raise ValueError(
            f"{name}: got integers from {value.min()} to {value.max()}, expected {low} to {high}"
        )
    return value


def flags(name: str, value: Any, shape: tuple[int, ...], *, time_major: bool) -> Any:
    """Return `value`, bools of the shape `(T, *batch)`, given with time last if not time-major."""
    unmasked(name, value)
    if getattr(value, "dtype", None) != np.bool_:
        raise TypeError(f"{name}: got {describe(value)}, expected an array of bools")
    expected = shape if time_major else (*shape[1:], shape[0])
    if value.shape != expected:
        raise ValueError(
            f"{name}: got {describe(value)}, expected bool{list(expected)}, as inputs are"
        )
    return value if time_major else jnp.moveaxis(value, -1, 0)


def scalar(name: str, value: Any) -> Any:
    """Return `value`, a floating scalar that the function called `name` returned."""
    if getattr(value, "shape", None) != () or not has_kind(value, jnp.floating):
        raise TypeError(f"{name}: returned {describe(value)}, expected a floating scalar")
    return value


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Return `value`, a size or a tuple of sizes, as a tuple; none may be negative."""
    if not isinstance(value, tuple | list):
        return (dimension(name, value),)
    return tuple(dimension(f"{name}[{axis}]", length) for axis, length in enumerate(value))


def dimension(name: str, value: Any) -> Any:
    """Return `value` as a size of at least 0; one that `jax.export` leaves open is let through."""
    if jax.export.is_symbolic_dim(value):
        return value
    number = integer(name, value)
    if number < 0:
        raise ValueError(f"{name}: got {number}, expected a size of at least 0")
    return number


def one_per_layer(name: str, value: Any, count: int) -> None:
    """Raise unless `value` is a tuple or list of `count` entries, one for each layer."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: got {describe(value)}, expected a tuple of {count} entries")
    if len(value) != count:
        raise ValueError(f"{name}: got {len(value)} entries, expected {count}")


def same_spec(name: str, value: Any, want: Any, because: str) -> None:
    """Compare a pytree of arrays with one of shapes and dtypes; `because` says who wants them."""
    if jax.tree.structure(value) != jax.tree.structure(want):
        raise TypeError(f"{_difference(name, value, want)} {because}")
    leaves = jax.tree_util.tree_leaves_with_path(value)
    for (path, leaf), expected in zip(leaves, jax.tree.leaves(want), strict=True):
        where = f"{name}{jax.tree_util.keystr(path)}"
        unmasked(where, leaf)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{where}: got {describe(leaf)}, expected {describe(expected)} {because}"
            )
        if leaf.shape != expected.shape:
            raise ValueError(
                f"{where}: got {describe(leaf)}, expected {describe(expected)} {because}"
            )
        if leaf.dtype != expected.dtype:
            raise TypeError(
                f"{where}: got {describe(leaf)}, expected {describe(expected)} {because}"
            )


def _difference(name: str, value: Any, want: Any) -> str:
    """Say where in two pytrees of different structures the innermost difference is."""
    if type(value) is type(want):
        got, expected = _children(value), _children(want)
        if isinstance(want, dict) and got.keys() != expected.keys():
            return f"{name}: got {_wrong_keys(got, expected)}, expected the keys {list(want)}"
        for key in expected:
            if key in got and jax.tree.structure(got[key]) != jax.tree.structure(expected[key]):
                return _difference(name + key, got[key], expected[key])
    return f"{name}: got {describe(value)}, expected {describe(want)}"


def _wrong_keys(got: dict[str, Any], expected: dict[str, Any]) -> str:
    missing = [key for key in expected if key not in got]
    faults = []
    for key in got:
        if key not in expected:
            similar = difflib.get_close_matches(key, missing, n=1)
            faults.append(f"{key} for {similar[0]}" if similar else f"an extra {key}")
            missing = [other for other in missing if other not in similar]
    return ", ".join(faults + [f"no {key}" for key in missing])


def _children(tree: Any) -> dict[str, Any]:
    """Return what a pytree's root holds, by where it is there."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return {jax.tree_util.keystr(path): child for path, child in pairs if path}


def steps(name: str, value: Any, count: int) -> None:
    """Raise unless `value` is a pytree of arrays whose first axis has `count` steps."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if getattr(leaf, "shape", ())[:1] != (count,):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: got {describe(leaf)}, expected an array of "
                f"{count} steps, as inputs have"
            )


def trainable(name: str, value: Any) -> None:
    """Raise unless `value` is a pytree of floating or complex numbers or arrays of them."""
    leaves = jax.tree_util.tree_leaves_with_path(value)
    if not leaves:
        raise TypeError(f"{name}: got {describe(value)}, expected at least one array to train")
    for path, leaf in leaves:
        if not isinstance(leaf, float | complex) and not has_kind(leaf, jnp.inexact):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)}: got {describe(leaf)}, expected a floating or "
                "complex array"
            )


def untraced(name: str, value: Any, function: str) -> None:
    """Raise if a pytree holds traced arrays, which `function` can't work on."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        raise TypeError(
            f"{name}: got traced arrays, expected numbers: call {function} outside of jit"
        )


def has_kind(value: Any, kind: Any) -> bool:
    """Say whether a value is an array of a kind of dtypes; one of another library is of none."""
    try:
        return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind)
    except TypeError:
        return False


def no_narrowing(name: str, value: Any) -> None:
    """Raise unless JAX keeps what NumPy's arrays in a pytree hold.

    Unless 64 bits are enabled it halves them, which changes floats, and integers that don't fit.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        unmasked(f"{name}{jax.tree_util.keystr(path)}", leaf)
        if not isinstance(leaf, np.ndarray | np.generic) or leaf.dtype.kind not in "iufc":
            continue
        dtype = jnp.result_type(leaf)
        fits = leaf.dtype.kind in "iu" and np.array_equal(leaf.astype(dtype), leaf)
        if dtype != leaf.dtype and not fits:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: got {describe(leaf)}, whose values change as "
                f"JAX turns it into {dtype} unless you call "
                "jax.config.update('jax_enable_x64', True) first"
            )


def describe(value: Any) -> str:
    """Say in a few words what a value is: an array's shape and dtype, a pytree's types, a repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
        parts = (f"{field}={describe(part)}" for field, part in fields)
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, tuple | list):
        # Of a long list, such as an array's rows, the first few say enough.
        parts = [describe(part) for part in value[: len(value) if len(value) <= 8 else 3]]
        rest = [f"... {len(value)} in all"] if len(parts) < len(value) else []
        return f"{type(value).__name__}({', '.join(parts + rest)})"
    if isinstance(value, dict):
        parts = [f"{key!r}: {describe(part)}" for key, part in value.items()]
        return f"{type(value).__name__} {{{', '.join(parts)}}}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
