import contextlib
import csv
import io

import jax
import numpy as np
import pytest

import jaxrnn
from experiments import sentence


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the experiment prints, and the folder that it writes."""
    folder = tmp_path_factory.mktemp("sentence")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        sentence.main(["--quick", "--out", str(folder)])
    return printed.getvalue(), folder


def test_shapes_come_in_the_order_of_the_lesson(run):
    printed, _ = run
    places = 0
    for shape in ["1, 5", "1, 5, 100", "5, 100", "1, 5, 64", "100, 64", "1, 64", "100, 64"]:
        places = printed.index(f"({shape})", places) + 1
    assert printed.count("10,996") == 2


def test_words_that_come_again_keep_their_index():
    indices, vocabulary = sentence.tokenise("time is time")
    np.testing.assert_array_equal(indices, [[0, 1, 0]])
    assert vocabulary == ["time", "is"]


def test_unrolled_by_hand_agrees_with_the_library():
    params = jaxrnn.elman(64, use_bias=False).init(jax.random.key(3), 100)
    inputs = jax.random.normal(jax.random.key(4), (5, 100))
    state, outputs = jaxrnn.unroll(jaxrnn.elman(64, use_bias=False), params, inputs)
    by_hand = sentence.unroll_by_hand(params, np.asarray(inputs))
    np.testing.assert_allclose(by_hand, outputs, atol=1e-5)
    np.testing.assert_allclose(by_hand[-1], state.hidden, atol=1e-5)


def test_parameters_are_counted_by_layer():
    layer = jaxrnn.serial(jaxrnn.embedding(5, 100), jaxrnn.rnn(jaxrnn.elman(64, use_bias=False)))
    assert sentence.count_parameters(layer.init(jax.random.key(0))) == 5 * 100 + (100 + 64) * 64


def test_files(run):
    _, folder = run
    with (folder / "sentence.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows[::64]] == ["What", "time", "is", "it", "?"]
    hidden = np.array([float(row["hidden"]) for row in rows]).reshape(5, 64)
    assert np.all(np.abs(hidden) < 1)
    assert len(np.unique(hidden, axis=0)) == 5
    assert (folder / "sentence.png").read_bytes().startswith(b"\x89PNG")
