import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import gradient_on_text
from experiments._gradient import horizon
from experiments.gradient_on_text import (
    Profile,
    bound_back,
    horizons_text,
    make_exponent,
    make_models,
    make_norms_back,
    make_stack,
    predicted_horizon,
    windows_before,
)

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that the quick experiment writes, on a text of its own."""
    folder = tmp_path_factory.mktemp("gradient_on_text")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    gradient_on_text.main(
        ["--quick", "--out", str(folder), "--text", str(folder / "text.txt"), "--seed", "1"]
    )
    return folder


@pytest.fixture(scope="module")
def curves(run):
    """The seeds' gradients, and bound, at each step back, for each cell and time of measuring."""
    curves = {}
    with (run / "gradient_on_text_curves.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault((row["cell"], row["when"]), ([], []))
            curve[0].append(float(row["gradient"]))
            curve[1].append(float(row["bound"] or "nan"))
    return {
        name: (np.reshape(norms, (2, -1)), np.reshape(bound, (2, -1))[0])
        for name, (norms, bound) in curves.items()
    }


def profile(*norms):
    return Profile(make_models(4, 5)[0], 1, False, np.array(norms), None, None)


def test_horizon_says_where_the_start_is_reached():
    assert horizons_text(profile(np.ones(500))) == ">= 499"
    assert horizons_text(profile(0.5 ** np.arange(500))) == "6"
    assert horizons_text(profile([1.0, np.inf, np.nan])) == ">= 2"


def test_the_seeds_horizons_are_their_median_and_their_range():
    norms = [rate ** np.arange(50) for rate in (0.5, 1.0, 0.1, 0.4, 0.6)]
    assert profile(*norms).horizons == (2, 6, 49)
    assert horizons_text(profile(*norms)) == "6 (2 to >= 49)"
    assert horizons_text(profile(*norms[:2])) == "27.5 (6 to >= 49)"


def test_windows_of_every_length_share_their_ends():
    text = jnp.arange(100)
    np.testing.assert_array_equal(
        windows_before(text, jnp.array([9, 50]), 2), [[7, 48], [8, 49], [9, 50]]
    )
    assert windows_before(text, jnp.full((4, 3), 60), 50).shape == (4, 51, 3)


@pytest.mark.slow
def test_norms_are_those_of_a_loop_over_steps():
    """Differentiates the rest of the sequence alone, from each hidden state in turn."""
    model = make_models(8, 5)[1]
    params = model.network.init(jax.random.key(0))
    windows = jax.random.randint(jax.random.key(1), (7, 1), 0, 5)
    table, cell, dense = params

    def loss_from(hidden, t):
        for symbol in windows[t + 1 : -1, 0]:
            hidden = jnp.tanh(table[symbol] @ cell.kernel + hidden @ cell.recurrent_kernel)
        return -jax.nn.log_softmax(hidden @ dense.kernel + dense.bias)[windows[-1, 0]]

    _, states = jaxrnn.unroll(model.cell, cell, table[windows[:-1, 0]])
    expected = [jnp.linalg.norm(jax.grad(loss_from)(states[t], t)) for t in range(6)]
    norms = make_norms_back(model)(params, windows)
    np.testing.assert_allclose(norms[::-1, 0, 0], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_stack_has_norms_of_every_layer():
    """The lower layer's gradient at the last step is what passes the upper layer's step."""
    model = make_stack(4, 5, 2)
    params = model.network.init(jax.random.key(0))
    windows = jax.random.randint(jax.random.key(1), (4, 1), 0, 5)
    table, lower, upper, dense = params
    state, outputs = jaxrnn.unroll(model.cell, lower, table[windows[:-2, 0]])
    above, _ = jaxrnn.unroll(model.cell, upper, outputs)
    state, _ = model.cell.step(lower, state, table[windows[-2, 0]])

    def loss_from(hidden):
        _, output = model.cell.step(upper, above, hidden)
        return -jax.nn.log_softmax(output @ dense.kernel + dense.bias)[windows[-1, 0]]

    norms = make_norms_back(model)(params, windows)
    assert norms.shape == (3, 2, 1)
    expected = jnp.linalg.norm(jax.grad(loss_from)(state.hidden))
    np.testing.assert_allclose(norms[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_exponent_of_an_orthogonal_linear_cell_is_zero():
    model = make_models(8, 5)[2]
    params = model.network.init(jax.random.key(0))
    windows = jax.random.randint(jax.random.key(1), (101, 2), 0, 5)
    assert abs(make_exponent(model)(params, windows)) < 1e-5
    table, cell, dense = params
    params = table, cell._replace(recurrent_kernel=cell.recurrent_kernel / 2), dense
    np.testing.assert_allclose(make_exponent(model)(params, windows), np.log(0.5), atol=1e-5)


@pytest.mark.parametrize("rate", [-2.0, -0.1, -0.04, -0.001, 0.0, 0.3])
def test_a_predicted_horizon_is_that_of_its_line(rate):
    assert predicted_horizon(rate, 300) == horizon(np.exp(rate * np.arange(300)))


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("number", range(3))
def test_no_window_exceeds_its_bound(number, scale):
    model = make_models(16, 5)[number]
    table, cell, dense = model.network.init(jax.random.key(0))
    kernel = scale * jax.random.normal(jax.random.key(1), (16, 16)) / 4
    params = table, cell._replace(recurrent_kernel=kernel), dense
    windows = jax.random.randint(jax.random.key(2), (21, 8), 0, 5)
    norms = np.asarray(make_norms_back(model)(params, windows), np.float64)[:, 0]
    factor = model.gamma * np.sqrt(np.linalg.eigvalsh(np.asarray(kernel.T @ kernel)).max())
    bound = bound_back(model, params, 20)
    assert bound is not None
    np.testing.assert_allclose(bound, factor ** np.arange(20), rtol=1e-4)
    # Each step may round up by a few units in the last place.
    assert np.all(norms <= norms[0] * bound[:, None] * (1 + 1e-5))


def test_gated_cells_have_no_bound():
    for model in make_models(4, 5)[3:]:
        assert bound_back(model, None, 3) is None


@pytest.mark.slow
def test_bound_holds_before_and_after_training(curves):
    for when in ["initial", "trained"]:
        norms, bound = curves["logistic", when]
        # The bound is of the kernel that is in the middle of the seeds'.
        assert np.all(norms.min(axis=0) <= bound * (1 + 1e-4)), when


@pytest.mark.slow
def test_the_logistic_gradient_vanishes_first(curves):
    for when in ["initial", "trained"]:
        horizons = {
            cell: profile(*norms).horizons for (cell, w), (norms, _) in curves.items() if w == when
        }
        assert horizons["logistic"] == min(horizons.values())
        assert horizons["logistic"][-1] < 10


@pytest.mark.slow
def test_next_characters_leave_an_lstm_a_shorter_gradient(curves):
    before, after = (profile(*curves["lstm", when][0]).horizons for when in ("initial", "trained"))
    assert after[-1] < before[0]
    assert after[-1] < 50


@pytest.mark.slow
def test_an_open_gate_carries_on():
    models = {model.name: model for model in make_models(32, 5)}
    windows = jax.random.randint(jax.random.key(2), (201, 8), 0, 5)
    horizons = {}
    for name in ["logistic", "tanh", "identity", "lstm", "lstm_open"]:
        params = models[name].network.init(jax.random.key(0))
        norms = np.asarray(make_norms_back(models[name])(params, windows))
        horizons[name] = horizon(norms[:, 0].mean(1))
    assert horizons["logistic"] < horizons["tanh"] < horizons["identity"] == 199
    assert horizons["lstm"] < horizons["lstm_open"]


@pytest.mark.slow
def test_table_agrees_with_the_curves(run, curves):
    with (run / "gradient_on_text.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(curves) == 8
    for row, key in zip(
        rows,
        [(c, w) for c in dict.fromkeys(c for c, _ in curves) for w in ("initial", "trained")],
        strict=True,
    ):
        norms, _ = curves[key]
        assert row["horizon"] == horizons_text(profile(*norms))
        np.testing.assert_allclose(float(row["gradient 100 back"]), norms[:, 100].mean())
        if not key[0].endswith("_1"):  # all is relative to the last layer
            np.testing.assert_array_equal(norms[:, 0], 1)
        assert (norms[0, 1:] != norms[1, 1:]).any()
        assert float(row["+-"] or 1) > 0


@pytest.mark.slow
def test_training_beats_the_frequencies_of_characters(run):
    _, counts = np.unique(list(TEXT), return_counts=True)
    entropy = -np.sum(counts / len(TEXT) * np.log2(counts / len(TEXT)))
    with (run / "gradient_on_text.csv").open(encoding="utf-8") as file:
        bits = {
            row["cell"]: float(row["bits"])
            for row in csv.DictReader(file)
            if row["when"] == "trained"
        }
    assert len(bits) == 4
    assert all(value < entropy for value in bits.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "_predictions", "_stack"])
def test_figures(run, name):
    assert (run / f"gradient_on_text{name}.png").read_bytes().startswith(b"\x89PNG")
