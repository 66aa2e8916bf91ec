"""The cell: the one thing that a recurrent network's author writes.

A cell is three pure functions. `step` may be any function; a `SplitStep` also shows its parts, from
which engines gain speed. A cell may also draw noise, read a context, or learn its initial state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._dtypes import distributed_like, without_weak_types
from jaxrnn._jaxpr import is_linear, leaves_read, returns_its_state
from jaxrnn._memoize import Rebuildable
from jaxrnn._types import Array

Params = TypeVar("Params")
State = TypeVar("State")


class NoisyInputs(NamedTuple):
    """The inputs of a stochastic cell in training: the ordinary inputs plus this step's noise.

    Without a key the cell evaluates, and its inputs are plain: the type tells the two apart.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> def step(params, state, inputs):
        ...     if isinstance(inputs, jaxrnn.cells.NoisyInputs):
        ...         state = state + inputs.noise
        ...     return state, state
        >>> cell = jaxrnn.Cell(
        ...     init=lambda key, input_size, dtype: (),
        ...     initial_state=lambda batch_shape, dtype: jnp.zeros(batch_shape, dtype),
        ...     step=step,
        ...     draw_noise=lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
        ... )
        >>> jaxrnn.unroll(cell, (), jnp.ones((3, 1)))[1]
        Array([0., 0., 0.], dtype=float32)
        >>> bool(jaxrnn.unroll(cell, (), jnp.ones((3, 1)), key=jax.random.key(0))[1].all())
        True
    """

    inputs: Float[Array, "*batch I"]
    noise: PyTree


def add(projected: PyTree, recurrent: PyTree) -> PyTree:
    """Return the sum of both products, array by array; no recurrent product adds nothing."""
    if not jax.tree.leaves(recurrent):
        return projected
    if jax.tree.structure(projected) != jax.tree.structure(recurrent):
        raise TypeError(
            f"combine: got {_check.describe(projected)} from `project` and "
            f"{_check.describe(recurrent)} from `recur`, expected the same structure, or a "
            "SplitStep(..., combine=...) that says how they meet"
        )
    return jax.tree.map(jnp.add, projected, recurrent)


@dataclasses.dataclass(frozen=True, eq=False)
class SplitStep:
    """A step in parts, for cells that multiply state and inputs by weights only once each.

    It can be called as a step, and computes

        projected = project(params, inputs)
        recurrent = recur(params, mask_state(state, projected))
        state, output = activate(params, state, combine(projected, recurrent))

    `project` needs no state, so engines run it over a whole sequence at once. The gradients of the
    weights in `project` and `recur` are taken after the backward loop, as one product each; those
    of weights in `activate` have to be summed within it.

    Attributes:
        project: `(params, inputs) -> projected`, everything that needs no state.
        recur: `(params, state) -> recurrent`, the product of the state with weights, one array per
            gate.
        activate: `(params, state, gates) -> (state, output)`, pointwise.
        combine: `(projected, recurrent) -> gates`, linear; by default the sum, array by array.
        mask_state: `(state, projected) -> state`, pointwise: the part of the state that enters the
            product, such as what dropout keeps. None for all of it.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> leaky = jaxrnn.SplitStep(
        ...     project=lambda params, inputs: inputs,
        ...     recur=lambda params, state: params * state,
        ...     activate=lambda params, state, gates: (gates, gates),
        ... )
        >>> state, output = leaky(jnp.array(0.5), jnp.ones(2), jnp.ones(2))
        >>> output
        Array([1.5, 1.5], dtype=float32)
    """

    project: Callable[..., Any]
    recur: Callable[[Any, Any], Any]
    activate: Callable[..., tuple[Any, Any]]
    combine: Callable[[Any, Any], Any] = add
    mask_state: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        for part in ("project", "recur", "activate", "combine"):
            _check.function(part, getattr(self, part))
        if self.mask_state is not None:
            _check.function("mask_state", self.mask_state)

    def __call__(self, params: Any, state: Any, inputs: Any, *context: Any) -> tuple[Any, Any]:
        """Compute one step from its parts; a cell that takes a context gives it too."""
        projected = self.project(params, inputs, *context)
        return self.activate(params, state, self.gates(params, state, projected), *context)

    def gates(self, params: Any, state: Any, projected: Any) -> Any:
        """Return what `activate` takes: both products, combined."""
        return self.combine(projected, self.product(params, state, projected))

    def product(self, params: Any, state: Any, projected: Any) -> Any:
        """Return the recurrent product, of what `mask_state` leaves of the state."""
        return self.recur(params, self.masked_state(state, projected))

    def masked_state(self, state: Any, projected: Any) -> Any:
        """Return the part of the state that enters the product."""
        return state if self.mask_state is None else self.mask_state(state, projected)


class Cell(Rebuildable, Generic[Params, State]):
    """A recurrent cell: a frozen record of three pure functions.

    It compares by identity and is no pytree: parameters and state are the only pytrees. Make one
    cell per setting and keep it, since JAX compiles anew for a new one; the constructors here
    return the same cell for equal settings.

    Args:
        init: `(key, input_size, dtype) -> params`, a pytree of arrays. It must be traceable.
        initial_state: `(batch_shape, dtype) -> state`, a pytree of arrays that begin with
            `batch_shape`.
        step: `(params, state, inputs) -> (state, output)` for inputs `(*batch, I)`: any function,
            or a `SplitStep`, which engines can speed up. The new state has the shapes and dtypes of
            `initial_state`'s.
        readout: `state -> output`, the output as a function of the new state, for cells where it
            is one. Wrappers that change the state read the output from it, and
            `rnn(return_sequences=False)` needs no other output.
        draw_noise: `(key, shape, dtype) -> noise`, the noise of a whole sequence in training: a
            pytree of floating arrays `(T, *batch, ...)` for `shape = (T, *batch)`. The inputs of
            `step` are then a `NoisyInputs`, except in evaluation. None for a deterministic cell.
        learned_state: `(params, batch_shape, dtype) -> state`, for a cell whose parameters hold the
            state that a sequence starts from; `initial_state` then gives only its layout.
        takes_context: whether the cell reads a context, the same at every step: `step`, or
            `project` and `activate`, then take it as one more argument.
        name: what error messages and figures call the cell.

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
        ...     readout=lambda state: state,
        ...     name="leaky_sum",
        ... )
        >>> state, outputs = jaxrnn.unroll(cell, (), jnp.ones((3, 2)))
        >>> outputs
        Array([2. , 3. , 3.5], dtype=float32)
    """

    _PARTS = (
        *("init", "initial_state", "step", "readout", "draw_noise", "learned_state"),
        *("takes_context", "name"),
    )
    __slots__ = (
        *("__weakref__", "_init", "_initial_state", "_made_by", "_derived", "_step"),
        *("draw_noise", "learned_state", "name", "readout", "takes_context"),
    )
    name: str
    readout: Callable[[Any], Any] | None
    draw_noise: Callable[..., PyTree] | None
    learned_state: Callable[..., State] | None
    takes_context: bool
    _init: Callable[..., Params]
    _initial_state: Callable[..., State]
    _step: Callable[..., tuple[State, Any]]
    _derived: dict[Any, Any]

    def __init__(
        self,
        init: Callable[..., Params],
        initial_state: Callable[..., State],
        step: Callable[..., tuple[State, Any]],
        *,
        readout: Callable[[Any], Any] | None = None,
        draw_noise: Callable[..., PyTree] | None = None,
        learned_state: Callable[..., State] | None = None,
        takes_context: bool = False,
        name: str = "cell",
    ):
        for part, value in {"init": init, "initial_state": initial_state, "step": step}.items():
            object.__setattr__(self, f"_{part}", _check.function(part, value))
        optional = {"readout": readout, "draw_noise": draw_noise, "learned_state": learned_state}
        for part, value in optional.items():
            value = value if value is None else _check.function(part, value)
            object.__setattr__(self, part, value)
        object.__setattr__(self, "takes_context", _check.flag("takes_context", takes_context))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_derived", {})

    def __setattr__(self, field: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to {field!r}: a cell is frozen")

    def __repr__(self) -> str:
        return f"Cell({self.name})"

    def __str__(self) -> str:
        return f"{self.name}: state {state_layout(self)}"

    def __reduce__(self) -> Any:
        if hasattr(self, "_made_by"):
            return super().__reduce__()
        return _rebuilt, (self._parts(),)

    def _parts(self) -> dict[str, Any]:
        own = {"init": self._init, "initial_state": self._initial_state, "step": self._step}
        return {part: own.get(part) or getattr(self, part) for part in Cell._PARTS}

    def replace(self, **parts: Any) -> "Cell":
        """Return a cell with some parts replaced.

        Args:
            **parts: arguments of `Cell`.

        Returns:
            The new cell. This is how wrappers are made, from cell to cell.

        Example:
            >>> import jaxrnn
            >>> jaxrnn.gru(64).replace(name="my_gru")
            Cell(my_gru)
        """
        return Cell(**{**self._parts(), **parts})

    def init(self, key: PRNGKeyArray, input_size: int, *, dtype: Any = jnp.float32) -> Params:
        """Draw the cell's parameters.

        Args:
            key: a random key.
            input_size: I, the number of features of each step's input.
            dtype: a floating dtype; float64 needs `jax_enable_x64`.

        Returns:
            The parameters, for the cells here a NamedTuple of arrays.

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
        batch_shape: int | tuple[int, ...] = (),
        *,
        dtype: Any = jnp.float32,
        params: Params | None = None,
    ) -> State:
        """Make the state that a sequence starts from.

        Args:
            batch_shape: the leading dimensions, `()` for a single sequence; 16 means `(16,)`.
            dtype: a floating dtype; float64 needs `jax_enable_x64`.
            params: what `init` returned, for a cell that learns the state, as one of
                `learned_initial_state` does; others don't look at it.

        Returns:
            The state, zeros for the cells here.

        Raises:
            TypeError: if a cell that learns the state gets no params.

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
        context: PyTree = None,
    ) -> tuple[State, PyTree]:
        """Advance the state by one step.

        Args:
            params: what `init` returned.
            state: the state before the step, with the batch dimensions of `inputs`;
                `initial_state` if None.
            inputs: one step's input, `(*batch, I)`, of the parameters' dtype.
            key: a random key for a step of training; None to evaluate. Deterministic cells ignore
                it.
            context: what a cell that takes a context reads, a pytree of arrays `(*batch, ...)`.

        Returns:
            The state after the step and the step's output, for the cells here `(*batch, H)`.

        Example:
            >>> import jax, jax.numpy as jnp, jaxrnn
            >>> cell = jaxrnn.gru(64)
            >>> params = cell.init(jax.random.key(0), 32)
            >>> state, output = cell.step(params, cell.initial_state((16,)), jnp.ones((16, 32)))
            >>> output.shape
            (16, 64)
        """
        _check.array("inputs", inputs, min_ndim=1, axes="(*batch, features)")
        state = self.checked_state(
            params, state, inputs, batch_shape=inputs.shape[:-1], context=context
        )
        contexts = (context,) if self.takes_context else ()
        if key is None:
            return self.advance(params, state, inputs, *contexts)
        noise = jax.tree.map(lambda leaf: leaf[0], self.noise(inputs[None], key))
        return self.advance(params, state, with_noise(inputs, noise), *contexts)

    def advance(
        self, params: Params, state: State, inputs: Any, *context: Any
    ) -> tuple[State, PyTree]:
        """Run the step on checked arguments, noise included: what engines and wrappers call."""
        return self._step(params, state, inputs, *context)

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
        """The step's parts if the cell shows them; None if it doesn't."""
        return self._step if isinstance(self._step, SplitStep) else None

    def blank_state(self, batch_shape: tuple[int, ...], dtype: Any) -> State:
        """Return a state that needs no params: the initial one, if it isn't learned."""
        return self._initial_state(batch_shape, dtype)

    def derived(self, compute: Callable[..., Any], *settings: Any) -> Any:
        """Return `compute(cell, *settings)`, computed once and kept for as long as the cell.

        Settings must be hashable. What is computed may depend on whether there are 64 bits, as the
        dtype of an array that has none given does.
        """
        key = (compute, settings, jax.config.read("jax_enable_x64"))
        if key not in self._derived:
            self._derived[key] = compute(self, *settings)
        return self._derived[key]

    # What a cell makes is asked of the cell itself, abstractly, so no cell describes its shapes.
    def state_spec(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of the state."""
        return self.derived(_state_spec, tuple(batch_shape), jnp.dtype(dtype))

    def params_spec(
        self, input_size: int, dtype: Any = jnp.float32
    ) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the shapes and dtypes of the parameters."""
        return self.derived(_params_spec, input_size, jnp.dtype(dtype))

    def output_is_state(self, input_size: int = 1, dtype: Any = jnp.float32) -> bool:
        """Return whether the step provably returns its whole new state as its output."""
        return self.derived(_output_is_state, input_size, jnp.dtype(dtype))

    def checked_state(
        self,
        params: Params,
        state: State | None,
        inputs: Float[Array, "..."],
        *,
        batch_shape: tuple[int, ...],
        context: PyTree = None,
    ) -> State:
        """Check params and state against what this cell makes for inputs such as these.

        Args:
            params: what `init` should have returned.
            state: what `initial_state` or `step` should have returned; None for the former.
            inputs: an array `(..., I)`; its dtype is the one that params and state must have.
            batch_shape: the batch dimensions that the state must have.
            context: what the cell reads at every step, None for a cell that reads none.

        Returns:
            The state.
        """
        features, dtype = inputs.shape[-1], inputs.dtype
        source = f"for {self.name} on inputs of {_check.describe(inputs)}"
        if features < 1:
            raise ValueError(f"inputs: got {_check.describe(inputs)}, expected at least 1 feature")
        _check.same_spec("params", params, self.params_spec(features, dtype), source)
        self._check_context(context, batch_shape)
        leaves, structure = jax.tree.flatten(context)
        layout = structure, tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves)
        self.derived(_check_step, features, tuple(batch_shape), jnp.dtype(dtype), layout)
        if state is None:
            state = self.initial_state(batch_shape, dtype=dtype, params=params)
            state = distributed_like(
                state, inputs if inputs.ndim > len(batch_shape) + 1 else inputs[None]
            )
        _check.same_spec("state", state, self.state_spec(batch_shape, dtype), source)
        return without_weak_types(state)

    def _check_context(self, context: PyTree, batch_shape: tuple[int, ...]) -> None:
        if (context is None) == self.takes_context:
            got, expected = ("none", "one") if self.takes_context else ("one", "none")
            verb = "reads a context" if self.takes_context else "reads no context"
            raise TypeError(f"context: got {got}, expected {expected}: {self.name} {verb}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(context):
            where = f"context{jax.tree_util.keystr(path)}"
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                raise TypeError(f"{where}: got {_check.describe(leaf)}, expected an array")
            if leaf.shape[: len(batch_shape)] != tuple(batch_shape):
                raise ValueError(
                    f"{where}: got {_check.describe(leaf)}, expected an array that begins with the "
                    f"batch dimensions {tuple(batch_shape)} of the inputs"
                )


def _rebuilt(parts: dict[str, Any]) -> Cell:
    return Cell(**parts)


def _params_spec(cell: Cell, input_size: int, dtype: Any) -> PyTree:
    return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, dtype=dtype))


def _state_spec(cell: Cell, batch_shape: tuple[int, ...], dtype: Any) -> PyTree:
    state = jax.eval_shape(lambda: cell.blank_state(batch_shape, dtype))
    # Not weakly typed, as no state that is carried is.
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def _output_is_state(cell: Cell, input_size: int, dtype: Any) -> bool:
    if cell.takes_context:
        return False
    inputs = jax.ShapeDtypeStruct((input_size,), dtype)
    return returns_its_state(
        cell.advance, cell.params_spec(input_size, dtype), cell.state_spec((), dtype), inputs
    )


# What it raises is not kept, so that a step which fails for want of a mapped axis may be tried
# again where there is one.
def _check_step(
    cell: Cell, features: int, batch_shape: tuple[int, ...], dtype: Any, context_layout: Any
) -> None:
    """Raise unless the cell's step, in evaluation, makes a state such as its initial one."""
    state = cell.state_spec(batch_shape, dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"cell: {cell.name}'s initial_state{jax.tree_util.keystr(path)}: got "
                f"{_check.describe(leaf)}, expected an array that begins with {batch_shape}"
            )
    structure, leaves = context_layout
    context = structure.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    bound, params = bind_context(cell, cell.params_spec(features, dtype), context)
    inputs = jax.ShapeDtypeStruct((*batch_shape, features), dtype)
    try:
        returned = jax.eval_shape(bound.advance, params, state, inputs)
    except Exception as error:
        error.add_note(f"in the step of {cell.name}, on inputs of {_check.describe(inputs)}")
        raise
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"cell: {cell.name}'s step: got {_check.describe(returned)}, expected (state, output)"
        )
    name = f"cell: {cell.name}'s step: state"
    _check.same_spec(name, returned[0], state, "as its initial_state makes")
    if cell.readout is not None:
        output = jax.eval_shape(cell.readout, state)
        name = f"cell: {cell.name}'s readout"
        _check.same_spec(name, output, returned[1], "as its step returns")
    if bound.split_step is not None:
        _check_combine(cell.name, bound.split_step, params, state, inputs)


def _check_combine(name: str, step: SplitStep, params: Any, state: Any, inputs: Any) -> None:
    """Raise unless `combine` is linear and makes use of all that it gets."""
    projected = jax.eval_shape(step.project, params, inputs)
    recurrent = jax.eval_shape(step.product, params, state, projected)
    if not is_linear(step.combine, projected, recurrent):
        raise ValueError(
            f"combine: {name}'s is not linear, as far as its jaxpr tells; expected sums and "
            "differences of its arguments, with products and nonlinearities in `activate`"
        )
    read = leaves_read(step.combine, projected, recurrent)
    for part, flags in zip(("projected", "recurrent"), read, strict=True):
        for path, flag in jax.tree_util.tree_leaves_with_path(flags):
            if not flag:
                where = f"{part}{jax.tree_util.keystr(path)}"
                raise ValueError(
                    f"combine: {name}'s loses {where}, expected all that `project` and `recur` "
                    "return to be in what it returns"
                )


class ContextParams(NamedTuple):
    """What a cell that reads a context has for params while it runs: its own, and the context."""

    params: Any
    context: Any


def bind_context(cell: Cell, params: Any, context: PyTree) -> tuple[Cell, Any]:
    """Return a cell that finds the context among its params, and those params.

    To an engine a context is then one more parameter.
    """
    if not cell.takes_context:
        return cell, params
    return cell.derived(_bound), ContextParams(params, context)


def _bound(cell: Cell) -> Cell:
    parts = cell.split_step
    if parts is None:
        return cell.replace(
            step=lambda bound, state, inputs: cell.advance(
                bound.params, state, inputs, bound.context
            ),
            learned_state=_of_own_params(cell),
            takes_context=False,
        )
    step = dataclasses.replace(
        parts,
        project=lambda bound, inputs: parts.project(bound.params, inputs, bound.context),
        recur=lambda bound, state: parts.recur(bound.params, state),
        activate=lambda bound, state, gates: parts.activate(
            bound.params, state, gates, bound.context
        ),
    )
    return cell.replace(step=step, learned_state=_of_own_params(cell), takes_context=False)


def _of_own_params(cell: Cell) -> Callable[..., PyTree] | None:
    learned_state = cell.learned_state
    if learned_state is None:
        return None
    return lambda bound, batch_shape, dtype: learned_state(bound.params, batch_shape, dtype)


def checked_cell(name: str, value: Any) -> Cell:
    """Return `value`, a cell."""
    if not isinstance(value, Cell):
        raise TypeError(f"{name}: got {_check.describe(value)}, expected a jaxrnn.Cell")
    return value


def state_layout(cell: Cell) -> str:
    """Return the shapes of a single sequence's state, such as `hidden[64], cell[64]`."""
    leaves = jax.tree_util.tree_leaves_with_path(cell.state_spec())
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    shapes = [list(leaf.shape) for _, leaf in leaves]
    return ", ".join(f"{name}{shape}" for name, shape in zip(names, shapes, strict=True)) or "()"


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
