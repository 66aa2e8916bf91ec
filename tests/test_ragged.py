"""Lengths, masks and resets: each engine against `unroll` on the real steps of each sequence."""

import functools
import itertools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.cells import CELLS
from tests.engines import ENGINES
from tests.problems import problem
from tests.tolerances import FLOAT64, PEERS_RELATIVE, relative_error, x64

H, T, B = 3, 7, 4
untyped: Any = jaxrnn

LENGTHS: Any = np.array([7, 3, 0, 5])


def bools(*rows: str) -> Any:
    """Return flags `(T, B)` from a string of 0 and 1 for each sequence."""
    return np.array([list(row) for row in rows]).T == "1"


# The first sequence has gaps, the second none, the third ends early, the fourth has one real step.
MASK = bools("1001101", "1111111", "1110000", "0000100")
# At the first step, at the last, at two steps in a row, at a step that MASK skips, and never.
RESETS = bools("1001000", "0011001", "0000100", "0000000")

KINDS = {
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    "all": {"lengths": LENGTHS, "mask": MASK, "resets": RESETS},
}

ROWS = {row.name: row for row in CELLS}
# Each kind alone by the default engine, all of them together by every one.
CASES = [
    pytest.param(
        ROWS[name].make(H),
        engine,
        kind,
        id=f"{name}-{engine_name}-{kind}",
        marks=[] if (name, engine_name, kind) == ("gru", "default", "all") else [pytest.mark.slow],
    )
    for kind in KINDS
    for name in ("lstm", "gru", "gru_reset_before", "elman_identity")
    for engine_name, engine, runs in [
        ("default", None, lambda cell: True),
        *[(row.name, row.engine, row.runs) for row in ENGINES],
    ]
    if runs(ROWS[name].make(H)) and (engine is None or kind == "all")
]


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def one_by_one(cell, params, inputs, state, *, lengths=None, mask=None, resets=None, reverse=False):
    """Run each sequence by itself, from one real step to the next, and put it together again."""
    mask = np.ones((T, B), bool) if mask is None else mask
    resets = np.zeros((T, B), bool) if resets is None else resets
    if lengths is not None:
        real = np.arange(T)[:, None] < lengths
        mask, resets = mask & real, resets & real
    finals, outputs, states = [], [], []
    for b in range(B):
        here = jax.tree.map(lambda leaf, b=b: leaf[b], state)
        columns: dict[int, Any] = {}
        for t in range(T)[::-1] if reverse else range(T):
            if resets[t, b]:
                here = cell.initial_state(dtype=inputs.dtype)
            output = jnp.zeros(H, inputs.dtype)
            if mask[t, b]:
                here, output = cell.step(params, here, inputs[t, b])
            columns[t] = (output, here)
        finals.append(here)
        rows = [columns[t] for t in range(T)]
        outputs.append(jnp.stack([output for output, _ in rows]))
        states.append(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state for _, state in rows])
        )
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves, 1))
    final = jax.tree.map(lambda *leaves: jnp.stack(leaves), *finals)
    return final, stack(*outputs), stack(*states)


def weighted(everything):
    numbers = flat(everything)
    return jnp.sin(numbers) @ jnp.cos(jnp.arange(numbers.size))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("cell", "engine", "kind"), CASES)
def test_values_and_gradients_are_those_of_each_sequence(cell, engine, kind, reverse):
    with x64():
        arguments = problem(cell, length=T, batch=(B,))

        def loss(run, arguments, **options):
            out = run(cell, *arguments, **KINDS[kind], reverse=reverse, **options)
            return weighted(out), out

        ours = functools.partial(loss, jaxrnn.unroll, engine=engine, return_states=True)
        theirs = functools.partial(loss, one_by_one)
        got, expected = (
            jax.jit(jax.value_and_grad(each, has_aux=True))(arguments) for each in (ours, theirs)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reverse", [False, True])
def test_what_padding_holds_has_no_effect(reverse):
    cell = jaxrnn.lstm(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    padding = np.arange(T)[:, None] >= LENGTHS

    def loss(params, inputs, state):
        out = jaxrnn.unroll(cell, params, inputs, state, lengths=LENGTHS, reverse=reverse)
        return weighted(out), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    clean = run(params, inputs, state)
    dirty = run(params, jnp.where(padding[..., None], jnp.nan, inputs), state)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    (_, (_, outputs)), (_, d_inputs, _) = clean
    assert (outputs[padding] == 0).all()
    assert (d_inputs[padding] == 0).all()
    assert (d_inputs[~padding] != 0).all()


@pytest.mark.usefixtures("float64")
def test_windows_with_resets_are_one_long_call():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    resets = jnp.asarray(RESETS)
    final, outputs = jaxrnn.unroll(cell, params, inputs, state, resets=resets, mask=MASK)
    for cuts in ([3], [1, 2, 5], [0, 4, 4]):
        parts, here, bounds = [], state, [0, *cuts, T]
        for start, end in itertools.pairwise(bounds):
            here, part = jaxrnn.unroll(
                cell,
                params,
                inputs[start:end],
                here,
                resets=resets[start:end],
                mask=MASK[start:end],
            )
            parts.append(part)
        np.testing.assert_allclose(jnp.concatenate(parts), outputs, **FLOAT64)
        np.testing.assert_allclose(here.hidden, final.hidden, **FLOAT64)


# Engines in chunks want no window shorter than a chunk.
STREAMS = [
    pytest.param(None, [1] * T, id="default"),
    *[
        pytest.param(row.engine, [3, 4], id=row.name, marks=pytest.mark.slow)
        for row in ENGINES
        if row.runs(jaxrnn.elman(H))
    ],
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("engine", "windows"), STREAMS)
def test_a_stack_in_windows_is_one_long_call_to_the_last_bit(engine, windows):
    """With whole numbers, whose sums are exact in any order: so nothing but rounding differs."""
    cell = jaxrnn.wrappers.learned_initial_state(jaxrnn.elman(H, activation=jax.nn.identity))
    model = jaxrnn.serial(
        jaxrnn.embedding(5, H),
        jaxrnn.rnn(cell, engine=engine),
        jaxrnn.layers.residual(jaxrnn.rnn(cell, engine=engine)),
        jaxrnn.dense(2),
    )
    rng = np.random.default_rng(0)
    spec = jax.eval_shape(lambda: model.init(jax.random.key(0), dtype=jnp.float64))
    params = jax.tree.map(lambda leaf: rng.integers(-2, 3, leaf.shape).astype(float), spec)
    text = rng.integers(0, 5, (T, B))
    apply = jax.jit(model.apply)
    expected = apply(params, None, text, **KINDS["all"])
    state, parts, start = None, [], 0
    for steps in windows:
        here = slice(start, start + steps)
        flags = {
            "lengths": np.clip(LENGTHS - start, 0, steps),
            "mask": MASK[here],
            "resets": RESETS[here],
        }
        state, part = apply(params, state, text[here], **flags)
        parts.append(part)
        start += steps
    assert start == T
    jax.tree.map(np.testing.assert_array_equal, (state, jnp.concatenate(parts)), expected)
    assert len(np.unique(expected[1])) > T


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dtype", "many"), [("uint32", 2**32 - 1), ("int8", 127)])
def test_lengths_of_any_integer_dtype_within_jit(dtype, many):
    """Beyond the end they count as the end, whatever another dtype would make of them."""
    cell = jaxrnn.elman(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    run = jax.jit(lambda lengths: jaxrnn.unroll(cell, params, inputs, state, lengths=lengths))
    got, expected = run(np.array([many, 3, 0, 5], dtype)), run(LENGTHS)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_layouts_and_transformations():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    expected = jaxrnn.unroll(
        cell, params, inputs, state, lengths=LENGTHS, resets=RESETS, mask=MASK, return_states=True
    )
    final, outputs, states = jaxrnn.unroll(
        cell,
        params,
        jnp.moveaxis(inputs, 0, 1),
        state,
        lengths=LENGTHS,
        resets=RESETS.T,
        mask=MASK.T,
        time_major=False,
        return_states=True,
    )
    back = functools.partial(jnp.moveaxis, source=1, destination=0)
    got = final, back(outputs), jax.tree.map(back, states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)

    def single(inputs, state, length, resets, mask):
        return jaxrnn.unroll(
            cell,
            params,
            inputs,
            state,
            lengths=length,
            resets=resets,
            mask=mask,
            return_states=True,
        )

    mapped = jax.jit(jax.vmap(single, (1, 0, 0, 1, 1), (0, 1, 1)))
    got = mapped(inputs, state, LENGTHS, RESETS, MASK)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


@pytest.mark.slow
def test_an_empty_sequence():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    nothing = jnp.zeros((0, B), bool)
    for reverse in (False, True):
        final, outputs = jaxrnn.unroll(
            cell,
            params,
            inputs[:0],
            state,
            lengths=0 * LENGTHS,
            mask=nothing,
            resets=nothing,
            reverse=reverse,
        )
        np.testing.assert_array_equal(final.hidden, state.hidden)
        assert outputs.shape == (0, B, H)


def test_no_compilation_for_other_lengths(compilations):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    lengths = jnp.asarray(LENGTHS)
    others = lengths[::-1]
    run = functools.partial(jaxrnn.unroll, cell, params, inputs, state)
    jax.block_until_ready(run(lengths=lengths))
    before = compilations()
    jax.block_until_ready(run(lengths=others))
    assert compilations() == before


# Layers -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_output_is_that_of_the_last_real_step(reverse):
    cell = jaxrnn.gru(H)
    layer = jaxrnn.rnn(cell, return_sequences=False, reverse=reverse)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    for options in KINDS.values():
        if "resets" in options:
            continue
        final, output = layer.apply(params, state, inputs, **options)
        real = np.arange(T)[:, None] < LENGTHS if "lengths" in options else MASK
        # Of a GRU the output is the state; a sequence without real steps has no output.
        expected = np.where(real.any(0)[:, None], final.hidden, 0)
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_output_of_any_shape(reverse):
    def step(params, state, inputs):
        state = 0.5 * state + inputs.sum(-1)
        ones = jnp.ones((*[1] * state.ndim, 2, 3))
        return state, (state, state[..., None, None] * ones)

    cell = jaxrnn.Cell(lambda *a: (), jnp.zeros, step)
    layer = jaxrnn.rnn(cell, return_sequences=False, reverse=reverse)
    inputs = jnp.ones((3, 3, 2))
    for batch, lengths in ((3, np.array([1, 2, 3])), ((), np.array(2))):
        of_batch = inputs if batch else inputs[:, 0]
        _, (plain, matrix) = layer.apply((), None, of_batch, lengths=lengths)
        expected = np.array([2, 3, 3.5])[lengths - 1]
        np.testing.assert_array_equal(plain, expected)
        np.testing.assert_array_equal(matrix, expected[..., None, None] * np.ones((2, 3)))
    _, (plain, matrix) = layer.apply((), None, inputs)
    assert (plain == 3.5).all()
    assert matrix.shape == (3, 2, 3)


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_a_stack_hands_lengths_on():
    model = jaxrnn.serial(
        jaxrnn.embedding(5, 3),
        jaxrnn.layers.residual(jaxrnn.rnn(jaxrnn.gru(3))),
        jaxrnn.serial(jaxrnn.dense(4), jaxrnn.bidirectional(jaxrnn.lstm(2))),
        jaxrnn.dense(2),
    )
    params = model.init(jax.random.key(0), dtype=jnp.float64)
    text = jax.random.randint(jax.random.key(1), (T, B), 0, 5)
    _, together = model.apply(params, None, text, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        _, alone = model.apply(params, None, text[:length, b : b + 1])
        np.testing.assert_allclose(together[:length, b], alone[:, 0], **FLOAT64)
    with pytest.raises(TypeError, match="lenghts"):
        model.apply(params, None, text, lenghts=LENGTHS)


@pytest.mark.peers
@pytest.mark.usefixtures("float64")
def test_bidirectional_agrees_with_packed_sequences():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(3, H, bidirectional=True, dtype=torch.float64)
    lengths = [7, 3, 1, 5]
    inputs = np.random.default_rng(0).normal(size=(T, B, 3))

    def weights(suffix):
        kernel, recurrent, bias, more = (
            getattr(theirs, f"{name}_l0{suffix}").detach().numpy()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return jaxrnn.cells.LSTMParams(*map(jnp.asarray, (kernel.T, recurrent.T, bias + more)))

    layer = jaxrnn.bidirectional(jaxrnn.lstm(H))
    params = weights(""), weights("_reverse")

    def ours(params, inputs):
        (forward, backward), outputs = layer.apply(params, None, inputs, lengths=np.array(lengths))
        hidden = jnp.stack([forward.hidden, backward.hidden])
        cell = jnp.stack([forward.cell, backward.cell])
        return (outputs**2).sum() + (hidden * cell).sum(), (outputs, hidden, cell)

    (_, got), (d_params, d_inputs) = jax.value_and_grad(ours, (0, 1), has_aux=True)(params, inputs)
    x = torch.tensor(inputs, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    outputs, (hidden, cell) = theirs(packed)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, total_length=T)
    ((outputs**2).sum() + (hidden * cell).sum()).backward()
    pairs = [
        *zip(got, (outputs, hidden, cell), strict=True),
        (d_inputs, x.grad),
        (d_params[0].kernel.T, theirs.weight_ih_l0.grad),
        (d_params[1].recurrent_kernel.T, theirs.weight_hh_l0_reverse.grad),
    ]
    for mine, torchs in pairs:
        assert relative_error(mine, torchs.detach().numpy()) < PEERS_RELATIVE["float64"]


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": [7, 3, 0, 5]}, TypeError, "lengths: got list"),
        ({"lengths": LENGTHS.astype(float)}, TypeError, r"lengths: got float64\[4\]"),
        ({"lengths": np.array([7, 3])}, ValueError, r"lengths: got int64\[2\], expected.*\(4,\)"),
        ({"lengths": np.array(7)}, ValueError, r"lengths: got int64\[\], expected.*\(4,\)"),
        ({"lengths": np.array([8, 3, 0, 5])}, ValueError, "lengths: got integers from 0 to 8"),
        ({"lengths": np.array([7, -1, 0, 5])}, ValueError, "lengths: got integers from -1 to 7"),
        ({"mask": MASK.astype(int)}, TypeError, r"mask: got int64\[7, 4\], expected .*bools"),
        ({"mask": True}, TypeError, "mask: got bool True, expected .*bools"),
        ({"mask": MASK.T}, ValueError, r"mask: got bool\[4, 7\], expected bool\[7, 4\]"),
        ({"mask": MASK[:6]}, ValueError, r"mask: got bool\[6, 4\]"),
        ({"resets": RESETS.astype(float)}, TypeError, r"resets: got float64\[7, 4\]"),
        ({"resets": RESETS[..., None]}, ValueError, r"resets: got bool\[7, 4, 1\]"),
    ],
)
def test_bad_input(options, error, message):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    with pytest.raises(error, match=message):
        jaxrnn.unroll(cell, params, inputs, state, **options)
