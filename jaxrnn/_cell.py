"""The cell: the one thing that a recurrent network's author writes.

A cell is three pure functions. `step` may be any function; a `SplitStep` step also shows its structure,
from which engines gain speed. A cell may also draw noise, or learn the state it starts from.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._dtypes import pvary_like, without_weak_types

Params = TypeVar("Params")
State = TypeVar("State")


class NoisyInputs(NamedTuple):
    """What a cell that draws noise gets as inputs in training: its inputs, and its noise beside.

    Without a key the cell evaluates, and gets plain inputs: the type alone tells the two apart.
    """

    inputs: Float[Array, "*batch I"]
    noise: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class SplitStep:
    """A step in parts, for cells that multiply state and inputs by weights only once each.

    It can be called as a step, and computes

        step(params, state, inputs) = activate(params, state, projected, recurrent)
        where projected = project(params, inputs)
              recurrent = recur(params, expose(state, projected))

    All parts act on any leading batch dimensions. Engines use them: `project` needs no state, so
    it may run over a whole sequence at once, and all gradients of the weights in `project` and
    `recur` can be taken after the backward loop; those of weights in `activate` can't.

    Attributes:
        project: `(params, inputs) -> projected`, everything that needs no state.
        recur: `(params, state) -> recurrent`, the product of the state with weights.
        activate: `(params, state, projected, recurrent) -> (state, output)`, pointwise.
        expose: `(state, projected) -> state`, pointwise: what of the state the product sees, such
            as a part that dropout leaves. None for all of it.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> leaky = jaxrnn.SplitStep(
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
    expose: Callable[[Any, Any], Any] | None = None

    def __call__(self, params: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
        """Compute one step from its parts."""
        projected = self.project(params, inputs)
        return self.activate(params, state, projected, self.product(params, state, projected))

    def product(self, params: Any, state: Any, projected: Any) -> Any:
        """Compute the recurrent product: what `recur` makes of what it is to see of the state."""
        return self.recur(params, self.exposed(state, projected))

    def exposed(self, state: Any, projected: Any) -> Any:
        """Return what of the state the product sees."""
        return state if self.expose is None else self.expose(state, projected)


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
            or a `SplitStep`, which engines can speed up. The new state has the shapes and dtypes of
            `initial_state`'s. Where the output is a part of the new state return the very array,
            and not from within `jax.jit` or `jax.checkpoint`, which return copies: by that,
            wrappers that change the state know to change the output too.
        draw_noise: `(key, shape, dtype) -> noise`, what the steps of a sequence take at random while they
            train: a pytree of floating arrays `(T, *batch, ...)` for `shape = (T, *batch)`. The
            inputs of `step` are then a `NoisyInputs`, unless it evaluates. None for a cell that is
            the same in training.
        learned_state: `(params, batch_shape, dtype) -> state`, for a cell whose parameters hold the
            state that a sequence starts from; `initial_state` then says only how it is laid out.
        name: what error messages and figures call the cell.

    Raises:
        TypeError: if a part is not a function.

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

    __slots__ = (
        "__weakref__",
        "_init",
        "_initial_state",
        "_step",
        "draw_noise",
        "learned_state",
        "name",
    )
    name: str
    draw_noise: Callable[..., PyTree] | None
    learned_state: Callable[..., State] | None
    _init: Callable[..., Params]
    _initial_state: Callable[..., State]
    _step: Callable[[Params, State, Any], tuple[State, Any]]

    def __init__(
        self,
        init: Callable[..., Params],
        initial_state: Callable[..., State],
        step: Callable[[Params, State, Any], tuple[State, Any]],
        *,
        draw_noise: Callable[..., PyTree] | None = None,
        learned_state: Callable[..., State] | None = None,
        name: str = "cell",
    ):
        for part, value in {"init": init, "initial_state": initial_state, "step": step}.items():
            object.__setattr__(self, f"_{part}", _check.function(part, value))
        for part, value in {"draw_noise": draw_noise, "learned_state": learned_state}.items():
            value = value if value is None else _check.function(part, value)
            object.__setattr__(self, part, value)
        object.__setattr__(self, "name", name)

    def __setattr__(self, field: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to {field!r}: a cell is frozen")

    def __repr__(self) -> str:
        return f"Cell({self.name})"

    def replace(self, **parts: Any) -> "Cell":
        """Return a cell that has other parts in the place of some of this one's.

        Args:
            **parts: arguments of `Cell`.

        Returns:
            The new cell. Wrappers are made so, from cell to cell.

        Example:
            >>> import jaxrnn
            >>> jaxrnn.gru(64).replace(name="my_gru")
            Cell(my_gru)
        """
        own = {
            "init": self._init,
            "initial_state": self._initial_state,
            "step": self._step,
            "draw_noise": self.draw_noise,
            "learned_state": self.learned_state,
            "name": self.name,
        }
        return Cell(**{**own, **parts})

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
        self,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: Any = jnp.float32,
        params: Params | None = None,
    ) -> State:
        """Make the state that a sequence starts from.

        Args:
            batch_shape: the leading dimensions, `()` for a single sequence.
            dtype: a floating dtype; float64 needs `jax_enable_x64`.
            params: what `init` returned, for a cell that learns the state, as one of
                `learned_initial_state` does; others don't look at it.

        Returns:
            The state, zeros for the cells here.

        Raises:
            TypeError: if `batch_shape` is not a tuple of integers or `dtype` not floating, or if a
                cell that learns the state gets no params.
            ValueError: if a dimension is negative or `dtype` not enabled.

        Example:
            >>> import jaxrnn
            >>> jaxrnn.lstm(64).initial_state((16,)).cell.shape
            (16, 64)
        """
        batch_shape = _check.shape("batch_shape", batch_shape)
        dtype = _check.float_dtype("dtype", dtype)
        if self.learned_state is None:
            return self._initial_state(batch_shape, dtype)
        if params is None:
            raise TypeError(
                f"params: got None, expected those of {self.name}, which learns its state"
            )
        return self.learned_state(params, batch_shape, dtype)

    def step(
        self,
        params: Params,
        state: State | None,
        inputs: Float[Array, "*batch I"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, PyTree]:
        """Advance the state by one step.

        Args:
            params: what `init` returned.
            state: the state before the step, with the batch dimensions of `inputs`;
                `initial_state` if None.
            inputs: one step's input, `(*batch, I)`, of the parameters' dtype.
            key: a random key for a step of training; None to evaluate. It matters to cells that
                draw noise only.

        Returns:
            The state after the step and the step's output, for the cells here `(*batch, H)`.

        Raises:
            TypeError: if an argument is of another cell, not floating, or of another dtype, or if
                the cell's own step returns another kind of state than its `initial_state`.
            ValueError: if a shape doesn't fit `inputs`, or the new state's not the initial one's.

        Example:
            >>> import jax, jax.numpy as jnp, jaxrnn
            >>> cell = jaxrnn.gru(64)
            >>> params = cell.init(jax.random.key(0), 32)
            >>> state, output = cell.step(params, cell.initial_state((16,)), jnp.ones((16, 32)))
            >>> output.shape
            (16, 64)
        """
        _check.array("inputs", inputs, min_ndim=1, axes="(*batch, features)")
        state = self.checked_state(params, state, inputs, batch_shape=inputs.shape[:-1])
        if key is None:
            return self.advance(params, state, inputs)
        noise = jax.tree.map(lambda leaf: leaf[0], self.noise(inputs[None], key))
        return self.advance(params, state, with_noise(inputs, noise))

    def advance(self, params: Params, state: State, inputs: Any) -> tuple[State, PyTree]:
        """Do as `step`, on arguments that have been checked and inputs that have their noise.

        This is what engines and wrappers call.
        """
        return self._step(params, state, inputs)

    def noise(self, inputs: Float[Array, "T *batch I"], key: PRNGKeyArray | None) -> PyTree:
        """Draw what the steps of a sequence take at random; None without a key or a need of it."""
        if key is not None:
            _check.key("key", key)
        if key is None or self.draw_noise is None:
            return None
        shape = inputs.shape[:-1]
        noise = self.draw_noise(key, shape, inputs.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(noise):
            name = f"draw_noise: noise{jax.tree_util.keystr(path)}"
            _check.array(name, leaf, min_ndim=len(shape), axes="(T, *batch, ...)")
            if leaf.shape[: len(shape)] != shape:
                raise ValueError(
                    f"{name}: got {_check.describe(leaf)}, expected one that begins with {shape}"
                )
        return noise

    @property
    def split_step(self) -> SplitStep | None:
        """The step's parts if it shows them, which some engines need; None if it doesn't."""
        return self._step if isinstance(self._step, SplitStep) else None

    def state_spec(self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> PyTree:
        """Return the shapes and dtypes of the state."""
        return _state_spec(self, tuple(batch_shape), jnp.dtype(dtype), _x64())

    def params_spec(self, input_size: int, dtype: Any = jnp.float32) -> PyTree:
        """Return the shapes and dtypes of the parameters."""
        return _params_spec(self, input_size, jnp.dtype(dtype), _x64())

    def checked_state(
        self,
        params: Params,
        state: State | None,
        inputs: Float[Array, "..."],
        *,
        batch_shape: tuple[int, ...],
    ) -> State:
        """Check params and state against what this cell makes for inputs such as these.

        Args:
            params: what `init` should have returned.
            state: what `initial_state` or `step` should have returned; None for the former.
            inputs: an array `(..., I)`; its dtype is the one that params and state must have.
            batch_shape: the batch dimensions that the state must have.

        Returns:
            The state.

        Raises:
            TypeError: on another structure or dtype, or if the cell's step makes another state.
            ValueError: on another shape, or if the cell's step makes one.
        """
        features, dtype = inputs.shape[-1], inputs.dtype
        source = f"for {self.name} on inputs of {_check.describe(inputs)}"
        if features < 1:
            raise ValueError(f"inputs: got {_check.describe(inputs)}, expected at least 1 feature")
        _check.same_spec("params", params, self.params_spec(features, dtype), source)
        _check_step(self, features, tuple(batch_shape), dtype, _x64())
        if state is None:
            state = self.initial_state(batch_shape, dtype=dtype, params=params)
            state = pvary_like(state, inputs)
        _check.same_spec("state", state, self.state_spec(batch_shape, dtype), source)
        return without_weak_types(state)


# What a cell makes is asked of the cell itself, abstractly, so no cell has to describe its shapes.
# The caches are bounded so that they can't keep every cell that ever was alive, and keyed by
# whether there are 64 bits, on which the dtype of what has none given depends, such as a counter's.
@functools.lru_cache(maxsize=1024)
def _params_spec(cell: Cell, input_size: int, dtype: Any, x64: bool) -> PyTree:
    init = functools.partial(cell.init, input_size=input_size, dtype=dtype)
    return jax.eval_shape(lambda: init(jax.random.key(0)))


@functools.lru_cache(maxsize=1024)
def _state_spec(cell: Cell, batch_shape: tuple[int, ...], dtype: Any, x64: bool) -> PyTree:
    state = jax.eval_shape(lambda: cell._initial_state(batch_shape, dtype))
    # Not weakly typed, as no state that is carried is.
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


# What it raises is not cached, so that a step which fails for want of a mapped axis may be tried
# again where there is one.
@functools.lru_cache(maxsize=1024)
def _check_step(
    cell: Cell, features: int, batch_shape: tuple[int, ...], dtype: Any, x64: bool
) -> None:
    """Raise unless the cell's step, in evaluation, makes a state such as its initial one."""
    state = cell.state_spec(batch_shape, dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"cell: {cell.name}'s initial_state{jax.tree_util.keystr(path)}: got "
                f"{_check.describe(leaf)}, expected an array that begins with {batch_shape}"
            )
    inputs = jax.ShapeDtypeStruct((*batch_shape, features), dtype)
    try:
        returned = jax.eval_shape(cell.advance, cell.params_spec(features, dtype), state, inputs)
    except Exception as error:
        error.add_note(f"in the step of {cell.name}, on inputs of {_check.describe(inputs)}")
        raise
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"cell: {cell.name}'s step: got {_check.describe(returned)}, expected (state, output)"
        )
    name = f"cell: {cell.name}'s step: state"
    _check.same_spec(name, returned[0], state, "as its initial_state makes")


def _x64() -> bool:
    return jax.config.read("jax_enable_x64")


def checked_cell(name: str, value: Any) -> Cell:
    """Return `value`, a cell."""
    if not isinstance(value, Cell):
        raise TypeError(f"{name}: got {_check.describe(value)}, expected a jaxrnn.Cell")
    return value


def with_noise(inputs: Any, noise: PyTree) -> Any:
    """Return what a step takes: inputs by themselves, or with what `Cell.noise` drew."""
    return inputs if noise is None else NoisyInputs(inputs, noise)


def hidden_part(cell: Any, state: PyTree) -> Any:
    """Return the hidden state, or what a pytree like a cell's or a bare step's has in its place.

    It is the field `hidden` of the state, or the state itself if that is a single array.
    """
    if hasattr(state, "hidden"):
        return state.hidden
    leaves = jax.tree.leaves(state)
    if len(leaves) != 1:
        raise ValueError(
            f"cell: got {getattr(cell, 'name', 'a step')}, whose state is "
            f"{_check.describe(state)}, expected a state of one array or with a field named hidden"
        )
    return leaves[0]


def with_hidden(state: PyTree, new: Any) -> PyTree:
    """Return the state with another hidden state."""
    if hasattr(state, "hidden"):
        kind: Any = type(state)
        replace = dataclasses.replace if dataclasses.is_dataclass(kind) else kind._replace
        return replace(state, hidden=new)
    return jax.tree.unflatten(jax.tree.structure(state), [new])
