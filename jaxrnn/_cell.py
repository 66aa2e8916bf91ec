"""The cell: the one thing that a recurrent network's author writes.

A cell is three pure functions. `step` may be any function; a `Gated` step also shows its structure,
from which engines gain speed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxrnn import _check

Params = TypeVar("Params")
State = TypeVar("State")


@dataclasses.dataclass(frozen=True, eq=False)
class Gated:
    r"""A step in three parts, for cells that multiply state and inputs by weights only once each.

    It can be called as a step, and computes

        step(params, state, inputs) =
            activate(params, state, project(params, inputs), recur(params, state))

    All three act on any leading batch dimensions. Engines use the parts: `project` needs no state,
    so it may run over a whole sequence at once, and as `activate` holds no matrix product, all
    weight gradients can be taken after the backward loop.

    Attributes:
        project: `(params, inputs) -> projected`, everything that needs no state.
        recur: `(params, state) -> recurrent`, the product of the state with weights.
        activate: `(params, state, projected, recurrent) -> (state, output)`, pointwise.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> leaky = jaxrnn.Gated(
        ...     project=lambda params, inputs: inputs,
        ...     recur=lambda params, state: params * state,
        ...     activate=lambda params, state, projected, recurrent: 2 * (projected + recurrent,),
        ... )
        >>> state, output = leaky(jnp.array(0.5), jnp.ones(2), jnp.ones(2))
        >>> output
        Array([1.5, 1.5], dtype=float32)
    """

    project: Callable[[Any, Any], Any]
    recur: Callable[[Any, Any], Any]
    activate: Callable[[Any, Any, Any, Any], tuple[Any, Any]]

    def __call__(self, params: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
        """Compute one step from its parts."""
        return self.activate(params, state, self.project(params, inputs), self.recur(params, state))


class Cell(Generic[Params, State]):
    """A recurrent cell: a frozen record of three pure functions.

    It compares by identity and is no pytree: parameters and state are the only pytrees. Give each
    setting one cell (the constructors here are memoised; `functools.cache` does the same for
    yours), since JAX compiles anew for a new one.

    Args:
        init: `(key, input_size, dtype) -> params`, a pytree of arrays. It must be traceable.
        initial_state: `(batch_shape, dtype) -> state`, a pytree of arrays that begin with
            `batch_shape`.
        step: `(params, state, inputs) -> (state, output)` for inputs `(*batch, I)`: any function,
            or a `Gated`, which engines can speed up.
        name: what error messages and figures call the cell.

    Raises:
        TypeError: if `init`, `initial_state` or `step` is not a function.

    Example:
        A cell that adds its inputs up, and forgets half of the sum at each step:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> def step(params, state, inputs):
        ...     state = 0.5 * state + inputs.sum(-1)
        ...     return state, state
        >>> cell = jaxrnn.Cell(
        ...     init=lambda key, input_size, dtype: (),
        ...     initial_state=lambda batch_shape, dtype: jnp.zeros(batch_shape, dtype),
        ...     step=step,
        ...     name="leaky_sum",
        ... )
        >>> state, outputs = jaxrnn.unroll(cell, (), jnp.ones((3, 2)))
        >>> outputs
        Array([2. , 3. , 3.5], dtype=float32)
    """

    __slots__ = ("__weakref__", "_init", "_initial_state", "_step", "name")
    name: str
    _init: Callable[..., Params]
    _initial_state: Callable[..., State]
    _step: Callable[[Params, State, Any], tuple[State, Any]]

    def __init__(
        self,
        init: Callable[..., Params],
        initial_state: Callable[..., State],
        step: Callable[[Params, State, Any], tuple[State, Any]],
        *,
        name: str = "cell",
    ):
        functions = {"_init": init, "_initial_state": initial_state, "_step": step}
        for field, value in functions.items():
            object.__setattr__(self, field, _check.function(field[1:], value))
        object.__setattr__(self, "name", name)

    def __setattr__(self, field: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to {field!r}: a cell is frozen")

    def __repr__(self) -> str:
        return f"Cell({self.name})"

    def init(self, key: PRNGKeyArray, input_size: int, *, dtype: Any = jnp.float32) -> Params:
        """Draw the cell's parameters.

        Args:
            key: a random key.
            input_size: I, the number of features of each step's input.
            dtype: a floating dtype; float64 needs `jax_enable_x64`.

        Returns:
            The parameters, for the cells here a NamedTuple of arrays.

        Raises:
            TypeError: if `key` is no key, `input_size` no integer or `dtype` not floating.
            ValueError: if `input_size` is below 1, `key` an array of keys or `dtype` not enabled.

        Example:
            >>> import jax, jaxrnn
            >>> jaxrnn.elman(64).init(jax.random.key(0), 100).kernel.shape
            (100, 64)
        """
        return self._init(
            _check.key("key", key),
            _check.size("input_size", input_size),
            _check.float_dtype("dtype", dtype),
        )

    def initial_state(
        self, batch_shape: tuple[int, ...] = (), *, dtype: Any = jnp.float32
    ) -> State:
        """Make the state that a sequence starts from.

        Args:
            batch_shape: the leading dimensions, `()` for a single sequence.
            dtype: a floating dtype; float64 needs `jax_enable_x64`.

        Returns:
            The state, zeros for the cells here.

        Raises:
            TypeError: if `batch_shape` is not a tuple of integers or `dtype` not floating.
            ValueError: if a dimension is negative or `dtype` not enabled.

        Example:
            >>> import jaxrnn
            >>> jaxrnn.lstm(64).initial_state((16,)).cell.shape
            (16, 64)
        """
        return self._initial_state(
            _check.shape("batch_shape", batch_shape), _check.float_dtype("dtype", dtype)
        )

    def step(
        self, params: Params, state: State, inputs: Float[Array, "*batch I"]
    ) -> tuple[State, PyTree]:
        """Advance the state by one step.

        Args:
            params: what `init` returned.
            state: the state before the step, with the batch dimensions of `inputs`.
            inputs: one step's input, `(*batch, I)`, of the parameters' dtype.

        Returns:
            The state after the step and the step's output, for the cells here `(*batch, H)`.

        Raises:
            TypeError: if an argument is of another cell, not floating, or of another dtype.
            ValueError: if a shape doesn't fit `inputs`.

        Example:
            >>> import jax, jax.numpy as jnp, jaxrnn
            >>> cell = jaxrnn.gru(64)
            >>> params = cell.init(jax.random.key(0), 32)
            >>> state, output = cell.step(params, cell.initial_state((16,)), jnp.ones((16, 32)))
            >>> output.shape
            (16, 64)
        """
        _check.array("inputs", inputs, min_ndim=1, axes="(*batch, features)")
        self.check(params, state, inputs, batch_shape=inputs.shape[:-1])
        return self._step(params, state, inputs)

    @property
    def structure(self) -> Gated | None:
        """The step's parts if it shows them, which some engines need; None if it doesn't."""
        return self._step if isinstance(self._step, Gated) else None

    def check(
        self, params: Params, state: State, inputs: Float[Array, "..."], *, batch_shape: tuple
    ) -> None:
        """Raise if params or state is not what this cell makes for inputs such as these.

        Args:
            params: what `init` should have returned.
            state: what `initial_state` or `step` should have returned.
            inputs: an array `(..., I)`; its dtype is the one that params and state must have.
            batch_shape: the batch dimensions that the state must have.

        Raises:
            TypeError: on another structure or dtype.
            ValueError: on another shape.
        """
        features, dtype = inputs.shape[-1], inputs.dtype
        source = f"for {self.name} on inputs of {_check.describe(inputs)}"
        if features < 1:
            raise ValueError(f"inputs: got {_check.describe(inputs)}, wanted at least 1 feature")
        _check.tree("params", params, _params_spec(self, features, dtype), source)
        _check.tree("state", state, _state_spec(self, batch_shape, dtype), source)


# What a cell makes is asked of the cell itself, abstractly, so no cell has to describe its shapes.
# The caches are bounded so that they can't keep every cell that ever was alive.
@functools.lru_cache(maxsize=1024)
def _params_spec(cell: Cell, input_size: int, dtype: Any) -> PyTree:
    init = functools.partial(cell.init, input_size=input_size, dtype=dtype)
    return jax.eval_shape(lambda: init(jax.random.key(0)))


@functools.lru_cache(maxsize=1024)
def _state_spec(cell: Cell, batch_shape: tuple[int, ...], dtype: Any) -> PyTree:
    return jax.eval_shape(lambda: cell.initial_state(batch_shape, dtype=dtype))
