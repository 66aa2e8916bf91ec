"""The cue experiment: what it asks, how it judges, and that its claim shows in a quick run."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import vanishing_gradient
from experiments._statistics import spearman
from experiments.vanishing_gradient import (
    CUES,
    RECIPES,
    Outcome,
    Passages,
    dividing_length,
    exceptions,
    gradient_back,
    longest_learnt,
    make_network,
    unreached,
)


def outcome(name, length, *accuracy):
    return Outcome(name, length, None, np.array(accuracy), 100)


def test_a_passage_is_text_between_its_cue_and_the_question():
    passages = Passages(jnp.arange(50) % 10, symbols=10)
    inputs, cues = passages.draw(jax.random.key(0), 200, 7)
    assert inputs.shape == (8, 200)
    np.testing.assert_array_equal(inputs[0], 10 + cues)
    assert set(np.asarray(cues).tolist()) == set(range(CUES))
    np.testing.assert_array_equal(inputs[-1], np.full(200, 10 + CUES))
    np.testing.assert_array_equal(inputs[2:-1], (inputs[1:-2] + 1) % 10)
    # Nothing but the cue tells which it was.
    assert (inputs[1:-1] < 10).all()


def test_the_first_and_the_last_character_can_be_drawn():
    inputs, _ = Passages(jnp.arange(6), symbols=6).draw(jax.random.key(0), 200, 4)
    assert set(np.asarray(inputs[1]).tolist()) == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "gru"])
def test_the_gradient_back_is_that_of_a_loop(name):
    """Differentiates the rest of the passage alone, from each state in turn."""
    network = make_network(RECIPES[name], 5, jax.random.key(0), hidden_size=8, seeds=2)
    inputs, cues = Passages(jnp.arange(40) % 5, symbols=5).draw(jax.random.key(1), 1, 6)
    embedding, params, dense = jax.tree.map(lambda leaf: leaf[1], network.initial)
    cell = RECIPES[name].cell(8)

    def loss_from(state, t):
        for symbol in inputs[t + 1 :]:
            state, _ = cell.step(params, state, embedding[symbol])
        logits = state.hidden @ dense.kernel + dense.bias
        return jaxrnn.losses.softmax_cross_entropy(logits, cues)

    state, norms = cell.initial_state((1,)), []
    for t, symbol in enumerate(inputs):
        state, _ = cell.step(params, state, embedding[symbol])
        norms.append(
            jnp.sqrt(
                sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss_from)(state, t)))
            )
        )
    expected = np.array(norms)[::-1] / norms[-1]
    np.testing.assert_allclose(
        gradient_back(network, network.initial, inputs, cues)[1], expected, rtol=1e-4
    )


@pytest.mark.slow
def test_the_remedy_differs_by_its_biases_alone():
    plain, chrono = (
        make_network(RECIPES[name], 5, jax.random.key(0), hidden_size=8, seeds=2)
        for name in ("gru", "gru_chrono")
    )
    for before, after in zip(plain.params(50), chrono.params(50), strict=True):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
        if hasattr(before, "recurrent_kernel"):
            assert same == type(before)(True, True, bias=False, recurrent_bias=True)
        else:
            assert all(jax.tree.leaves(same))
    _, short, _ = chrono.params(2)
    assert jnp.isfinite(short.bias).all()


def test_the_longest_that_each_seed_has_learnt():
    outcomes = [outcome("gru", 5, 1.0, 0.95, 0.3), outcome("gru", 10, 0.9, 0.89, 0.2)]
    np.testing.assert_array_equal(longest_learnt(outcomes), [10, 5, 0])


def test_what_a_horizon_foretells_is_no_exception():
    learnt, failed = (1.0, 0.95, 0.9), (0.25, 0.9, 0.49)
    outcomes = [outcome("gru", 5, *learnt), outcome("gru", 20, *failed)]
    assert exceptions("GRU", 10, outcomes) == []
    assert exceptions("GRU", 5, outcomes) == []
    # Between half and four times the horizon anything goes.
    assert exceptions("GRU", 6, outcomes) == []
    assert len(exceptions("GRU", 1, outcomes)) == 1
    assert exceptions("GRU", 19, outcomes) == []
    # It reaches the longest: all of it should be learnt.
    assert exceptions("GRU", 20, outcomes) == ["GRU learns T = 20 with 1 of 3 seeds only"]


def test_the_gradient_after_training_is_at_a_length_that_some_learn():
    outcomes = [
        outcome(name, length, accuracy)
        for name, row in {"tanh": (1, 1, 0.2), "gru": (1, 0.2, 0.2), "lstm": (1, 1, 1)}.items()
        for length, accuracy in zip((5, 20, 50), row, strict=True)
    ]
    assert dividing_length(outcomes) == 20


def test_a_gradient_that_contradicts_what_is_learnt_is_told():
    after = {"gru": np.array([[1.0, 0.5]]), "lstm": np.array([[1.0, 1e-9]])}
    assert unreached(after, [outcome("gru", 1, 1.0), outcome("lstm", 1, 0.2)]) == []
    told = unreached(after, [outcome("gru", 1, 0.2), outcome("lstm", 1, 1.0)])
    assert told == [
        "at T = 1 GRU misses the cue with a gradient back to it in 1 of 1 seeds",
        "at T = 1 LSTM knows the cue with no gradient back to it in 1 of 1 seeds",
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a quick run prints, and its rows."""
    folder = tmp_path_factory.mktemp("vanishing_gradient")
    vanishing_gradient.main(["--quick", "--out", str(folder)])
    assert (folder / "vanishing_gradient.png").stat().st_size > 10_000
    files = {}
    for name in ("vanishing_gradient", "vanishing_gradient_curves"):
        with (folder / f"{name}.csv").open(encoding="utf-8") as file:
            files[name] = list(csv.DictReader(file))
    return files


@pytest.mark.slow
def test_what_the_gradient_does_not_reach_is_not_learnt(run):
    rows = run["vanishing_gradient"]
    lengths = sorted({int(row["T"]) for row in rows})
    horizons, longest = {}, {}
    for name in RECIPES:
        of_name = [row for row in rows if row["network"] == name]
        horizons[name] = np.median([int(row["horizon"]) for row in of_name])
        accuracy = {
            length: np.median([float(r["accuracy"]) for r in of_name if int(r["T"]) == length])
            for length in lengths
        }
        longest[name] = max((n for n in lengths if accuracy[n] >= 0.9), default=0)
        for length in lengths:
            if length <= horizons[name] / 2:
                assert accuracy[length] >= 0.9, (name, length)
            if length >= 4 * horizons[name]:
                assert accuracy[length] < 0.5, (name, length)
    assert sorted(horizons, key=lambda name: horizons[name]) == list(RECIPES_BY_REACH)
    assert longest["gru_chrono"] == lengths[-1] > longest["gru"]
    assert spearman(*(np.array(list(d.values()), float) for d in (horizons, longest))) > 0.8


RECIPES_BY_REACH = ("logistic", "gru", "tanh", "lstm", "gru_chrono")


@pytest.mark.slow
def test_after_training_the_gradient_reaches_what_is_learnt(run):
    accuracy = {
        (row["network"], row["T"], row["seed"]): float(row["accuracy"])
        for row in run["vanishing_gradient"]
    }
    ends = [
        row
        for row in run["vanishing_gradient_curves"]
        if row["when"] == "trained" and row["steps_back"] == row["T"]
    ]
    assert len(ends) == 2 * len(RECIPES)
    for row in ends:
        learnt = accuracy[row["network"], row["T"], row["seed"]] >= 0.9
        assert (float(row["gradient"]) >= 0.01) == learnt, row


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"ab" * 2000, r"got 4,000 characters, expected more than 5,000"),
        (b"a" * 10_000, "got one symbol only"),
        (b"\xff\xfe\xff", "codec can't decode"),
        (b"", "the file is empty"),
        (None, "No such file"),
    ],
)
def test_a_text_that_will_not_do(tmp_path, text, message):
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SystemExit, match=message) as error:
        vanishing_gradient.main(["--text", str(path)])
    assert "--text" in str(error.value)


@pytest.mark.parametrize("option", ["--length=1", "--seeds=0", "--steps=0", "--hidden=0"])
def test_a_bad_setting_is_reported(capsys, option):
    with pytest.raises(SystemExit):
        vanishing_gradient.main([option])
    assert option.split("=")[0] in capsys.readouterr().err.splitlines()[-1]
