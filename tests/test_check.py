"""The checks of arguments: what each lets through, and what it says of the rest."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import _check
from tests.tolerances import x64


class Pair(NamedTuple):
    left: object
    right: object


def float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


GOOD = [
    (_check.size, 1, 1),
    (_check.size, np.int8(3), 3),
    (functools.partial(_check.size, least=2), 2, 2),
    (_check.integer, -5, -5),
    (_check.integer, np.uint16(7), 7),
    (_check.number, 2, 2.0),
    (_check.number, np.float16(0.5), 0.5),
    (_check.number, np.int64(-3), -3.0),
    (functools.partial(_check.number, low=0.0, high=1.0), 0, 0.0),
    (functools.partial(_check.number, low=0.0, high=1.0), 1.0, 1.0),
    (_check.flag, True, True),
    (_check.flag, np.bool_(False), False),
    (_check.shape, (), ()),
    (_check.shape, 16, (16,)),
    (_check.shape, [3, np.int32(0)], (3, 0)),
]


@pytest.mark.parametrize(("check", "value", "expected"), GOOD)
def test_plain_values_come_back_as_pythons_own(check, value, expected):
    got = check("name", value)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (_check.size, 0, ValueError, "got 0, expected an integer of at least 1"),
        (_check.size, np.int64(-1), ValueError, "got -1"),
        (_check.size, 2.0, TypeError, "got float 2.0, expected an integer"),
        (functools.partial(_check.size, least=10), 9, ValueError, "got 9, .* at least 10"),
        (_check.integer, True, TypeError, "got bool True"),
        (_check.integer, np.bool_(True), TypeError, "got bool"),
        (_check.integer, np.float32(1), TypeError, r"got float32\[\]"),
        (_check.integer, "3", TypeError, "got str '3'"),
        (_check.integer, None, TypeError, "got NoneType None"),
        (_check.integer, np.array(3), TypeError, r"got int64\[\]"),
        (_check.integer, jnp.ones(2, jnp.int32), TypeError, r"got int32\[2\]"),
        (_check.integer, (3, 1), TypeError, r"got tuple\(int 3, int 1\)"),
        (_check.number, float("nan"), ValueError, "got nan, expected a finite number"),
        (_check.number, float("inf"), ValueError, "got inf"),
        (_check.number, False, TypeError, "got bool False, expected a number"),
        (_check.number, np.bool_(True), TypeError, "got bool"),
        (_check.number, "1.0", TypeError, "got str '1.0'"),
        (_check.number, 1j, TypeError, "got complex"),
        (_check.number, np.ones(1), TypeError, r"got float64\[1\]"),
        (_check.number, jnp.float32(1.0), TypeError, r"got float32\[\]"),
        (
            functools.partial(_check.number, low=0.0),
            -1e-9,
            ValueError,
            "got -1e-09, .* from 0.0 to inf",
        ),
        (
            functools.partial(_check.number, high=1.0),
            1.5,
            ValueError,
            "got 1.5, .* from -inf to 1.0",
        ),
        (_check.flag, 1, TypeError, "got int 1, expected True or False"),
        (_check.flag, "no", TypeError, "got str 'no'"),
        (_check.flag, None, TypeError, "got NoneType None"),
        (_check.flag, np.array([True]), TypeError, r"got bool\[1\]"),
        (_check.function, "tanh", TypeError, "got str 'tanh', expected a function"),
        (_check.function, None, TypeError, "got NoneType"),
        (_check.function, np.ones(2), TypeError, r"got float64\[2\]"),
        (_check.shape, 16.0, TypeError, r"got float 16.0, expected an integer"),
        (_check.shape, np.array([3]), TypeError, r"got int64\[1\]"),
        (_check.shape, -1, ValueError, r"got -1, expected a size of at least 0"),
        (_check.shape, (2, -1), ValueError, r"name\[1\]: got -1, expected a size of at least 0"),
        (_check.shape, (2.0,), TypeError, r"name\[0\]: got float 2.0"),
        (_check.shape, (1, True), TypeError, r"name\[1\]: got bool True"),
        (_check.key, 0, TypeError, "got int 0, expected a key"),
        (_check.key, None, TypeError, "got NoneType"),
        (_check.key, jnp.zeros(2), TypeError, r"got float32\[2\]"),
        (_check.key, np.zeros(3, np.uint32), ValueError, r"got .*, expected one key"),
        (
            _check.key,
            jax.random.split(jax.random.key(0), 1),
            ValueError,
            r"got .*, expected one key",
        ),
        (
            _check.key,
            jax.random.split(jax.random.PRNGKey(0)),
            ValueError,
            r"got .*, expected one key",
        ),
        (_check.float_dtype, jnp.int32, TypeError, "got int32, expected a floating dtype"),
        (_check.float_dtype, "complex64", TypeError, "got complex64"),
        (_check.float_dtype, "single precision", TypeError, "got 'single precision'"),
        (_check.float_dtype, 32, TypeError, "got 32"),
        (_check.float_dtype, "float64", ValueError, "got float64, .*jax_enable_x64"),
        (_check.float_dtype, float, ValueError, "got float64"),
        (_check.float_dtype, ">f4", TypeError, "got >f4, expected a floating dtype of JAX"),
        (_check.float_dtype, np.longdouble, TypeError, "got float128, expected a floating dtype"),
    ],
)
def test_wrong_plain_values(check, value, error, message):
    with pytest.raises(error, match=message if message.startswith("name") else f"name: {message}"):
        check("name", value)


def test_a_function_must_be_hashable():
    class Unhashable:
        __hash__ = None  # pyright: ignore[reportAssignmentType]

        def __call__(self):
            pass

    assert _check.function("name", len) is len
    with pytest.raises(TypeError, match="name: got Unhashable"):
        _check.function("name", Unhashable())


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_both_kinds_of_key_are_one_key(make):
    key = make(0)
    assert _check.key("key", key) is key
    # Inside vmap each entry is one key.
    assert jax.vmap(lambda k: (_check.key("key", k), jnp.ones(()))[1])(
        jax.random.split(key, 3)
    ).shape == (3,)


def test_floating_dtypes():
    for name in ("float16", "bfloat16", "float32"):
        assert _check.float_dtype("dtype", name) == _check.float_dtype("dtype", getattr(jnp, name))
    with x64():
        assert _check.float_dtype("dtype", "float64") == np.float64


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, 2.0], TypeError, r"xs: got list\(float 1.0, float 2.0\), .* array \(T, I\)"),
        (3.0, TypeError, "xs: got float 3.0"),
        (np.ones((2, 2), np.int32), TypeError, r"xs: got int32\[2, 2\], expected a floating dtype"),
        (np.ones((2, 2), bool), TypeError, r"xs: got bool\[2, 2\]"),
        (np.array(["a"]), TypeError, "xs: got <U1"),
        (jnp.ones(2), ValueError, r"xs: got float32\[2\], expected an array \(T, I\)"),
        (np.ones((2, 2)), ValueError, "xs: got float64, .*jax_enable_x64"),
    ],
)
def test_arrays(value, error, message):
    with pytest.raises(error, match=message):
        _check.array("xs", value, min_ndim=2, axes="(T, I)")


class Foreign(NamedTuple):
    """What another library's array looks like: its dtype is nothing to JAX, as torch's are."""

    dtype: Any = "torch.float32"
    shape: Any = (2,)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (functools.partial(_check.array, min_ndim=1, axes="(N)"), "a floating dtype of JAX"),
        (functools.partial(_check.integers, low=0, high=1), "an array of integers"),
        (_check.key, "a key of jax.random.key"),
        (_check.scalar, "a floating scalar"),
    ],
)
def test_arrays_of_other_libraries(check, expected):
    with pytest.raises(TypeError, match=rf"xs: \w+ torch.float32\[2\], expected {expected}"):
        check("xs", Foreign())


def test_keys_of_another_implementation():
    assert _check.key("key", np.zeros(4, np.uint32)).shape == (4,)


def test_good_arrays_come_back():
    for value in (np.ones((2, 3), np.float32), jnp.ones((4, 2, 3), jnp.bfloat16)):
        assert _check.array("xs", value, min_ndim=2, axes="(T, I)") is value


@pytest.mark.parametrize("make", [np.array, jnp.array])
def test_integers_are_compared_without_wrapping_around(make):
    small = make([0, 255], np.uint8)
    assert _check.integers("ids", small, low=0, high=299) is small
    with pytest.raises(ValueError, match="ids: got integers from 0 to 255, expected 0 to 9"):
        _check.integers("ids", small, low=0, high=9)
    with pytest.raises(ValueError, match="ids: got integers from -3 to 1, expected 0 to 9"):
        _check.integers("ids", make([1, -3], np.int8), low=0, high=9)
    for wrong in (make([1.0], np.float32), make([True])):
        with pytest.raises(TypeError, match=r"ids: got \w+\[1\], expected an array of integers"):
            _check.integers("ids", wrong, low=0, high=9)
    with pytest.raises(TypeError, match="ids: got list"):
        _check.integers("ids", [1, 2], low=0, high=9)


def test_integers_where_they_count():
    labels, counts = np.array([3, 99]), np.array([True, False])
    assert _check.integers("ids", labels, low=0, high=9, where=counts) is labels
    with pytest.raises(ValueError, match="ids: got"):
        _check.integers("ids", labels, low=0, high=9, where=~counts)


def test_traced_integers_have_no_values_to_check():
    traced = jax.jit(lambda ids: _check.integers("ids", ids, low=0, high=9))
    np.testing.assert_array_equal(traced(np.array([99], np.int32)), [99])


@pytest.mark.parametrize("value", [0.0, np.ones(1), jnp.ones((), jnp.int32), (jnp.ones(()), 1)])
def test_not_a_scalar(value):
    with pytest.raises(TypeError, match=r"loss: returned .*, expected a floating scalar"):
        _check.scalar("loss", value)


def test_scalar():
    assert _check.scalar("loss", jnp.ones((), jnp.float16)) == 1


def test_entries():
    _check.one_per_layer("params", (None, [1]), 2)
    with pytest.raises(ValueError, match="params: got 3 entries, expected 2"):
        _check.one_per_layer("params", [1, 2, 3], 2)
    for value in ({1: 2}, "ab", None, np.ones(2)):
        with pytest.raises(TypeError, match=r"params: got .*, expected a tuple of 2 entries"):
            _check.one_per_layer("params", value, 2)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            Pair(jnp.ones(2), None),
            TypeError,
            r"state.right: got NoneType None, expected float32\[3\] for this test",
        ),
        ((jnp.ones(2), jnp.ones(3)), TypeError, "state: got tuple"),
        (Pair(jnp.ones(2), 1.0), TypeError, "state.right: got float 1.0, expected float32"),
        (Pair(jnp.ones(2), jnp.ones((3, 1))), ValueError, r"state.right: got float32\[3, 1\]"),
        (
            Pair(jnp.ones(2, jnp.bfloat16), jnp.ones(3)),
            TypeError,
            r"state.left: got bfloat16\[2\], expected float32\[2\] for this test",
        ),
    ],
)
def test_trees(value, error, message):
    want = Pair(float32(2), float32(3))
    _check.same_spec("state", Pair(jnp.ones(2), np.ones(3, np.float32)), want, "for this test")
    with pytest.raises(error, match=message):
        _check.same_spec("state", value, want, "for this test")


KEYS = {"kernel": float32(2), "inner": Pair(float32(), {"scale": float32(), "shift": float32()})}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {"kernal": p["kernel"], "inner": p["inner"]},
            r"params: got ['kernal'] for ['kernel'], expected the keys ['kernel', 'inner'] for",
        ),
        (
            lambda p: {"kernel": p["kernel"]},
            "params: got no ['inner'], expected the keys ['kernel', 'inner'] for this test",
        ),
        (lambda p: {**p, "zzz": 1}, "params: got an extra ['zzz'], expected the keys"),
        (lambda p: {**p, "inner": None}, "params['inner']: got NoneType None, expected Pair(left="),
        (
            lambda p: {**p, "inner": p["inner"]._replace(right={"scales": 1, "zzz": 2})},
            "params['inner'].right: got ['scales'] for ['scale'], an extra ['zzz'], no ['shift']",
        ),
        (lambda p: [p], "params: got list(dict {'inner': Pair(left=float32[], right="),
        (lambda p: p["kernel"], "params: got float32[2], expected dict {'kernel': float32[2], 'in"),
    ],
)
def test_wrong_keys(change, message):
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), KEYS)
    _check.same_spec("params", params, KEYS, "for this test")
    with pytest.raises(TypeError, match=re.escape(message)):
        _check.same_spec("params", change(params), KEYS, "for this test")


@pytest.mark.parametrize("leaf", [1, True, "a", len, np.ones(2, int), jax.random.key(0)])
def test_what_cannot_be_trained(leaf):
    _check.trainable("params", [1.0, 1j, None, np.ones(2, jnp.bfloat16), jnp.ones(2, complex)])
    with pytest.raises(
        TypeError, match=r"params\['a'\]: got .*, expected a floating or complex arr"
    ):
        _check.trainable("params", {"a": leaf})


def test_64_bits_that_are_not_kept():
    good = np.array([2**31 - 1, -(2**31)]), np.uint64(2**32 - 1), np.zeros((0,), int), "a", 1.0
    _check.no_narrowing("batch", good)
    for leaf, dtype in (
        (np.array([2**32 + 1]), "int32"),
        (np.uint64(2**32), "uint32"),
        (np.ones(2), "float32"),
        (np.ones(2, complex), "complex64"),
    ):
        message = (
            rf"batch\[1\]: got {leaf.dtype}\[.*, whose values change as JAX turns it into {dtype}"
        )
        with pytest.raises(ValueError, match=message):
            _check.no_narrowing("batch", (1, leaf))
        with x64():
            _check.no_narrowing("batch", (1, leaf))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.ones((2, 3), jnp.bfloat16), "bfloat16[2, 3]"),
        (float32(), "float32[]"),
        (Pair(np.ones(1), "x"), "Pair(left=float64[1], right=str 'x')"),
        ([1, (None,)], "list(int 1, tuple(NoneType None))"),
        ([[1, 2], *range(8)], "list(list(int 1, int 2), int 0, int 1, ... 9 in all)"),
        ({"a": np.ones(1), 2: {}}, "dict {'a': float64[1], 2: dict {}}"),
        ("a" * 100, "str '" + "a" * 56 + "..."),
    ],
)
def test_descriptions(value, text):
    assert _check.describe(value) == text
