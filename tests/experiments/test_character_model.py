"""The character model: its baselines, its windows, and that state carries across them."""

import csv
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import character_model
from tests.tolerances import FLOAT32

TEXT = "the cat sat on the mat. the hat sat on the cat. "


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 7, 61).astype(np.int32)


@pytest.fixture
def model():
    return character_model.make_model("lstm", 7, features=3, hidden_size=4, layers=2, rate=0.5)


def test_each_lane_goes_on_where_it_stopped(codes):
    text = character_model.windows(codes, length=5, batch_size=3)
    assert text.inputs.shape == text.targets.shape == (4, 5, 3)
    for lane in range(3):
        np.testing.assert_array_equal(text.inputs[..., lane].ravel(), codes[20 * lane :][:20])
        np.testing.assert_array_equal(text.targets[..., lane].ravel(), codes[20 * lane + 1 :][:20])


def test_windows_need_one_character_more_than_they_read(codes):
    assert character_model.windows(codes[:16], length=5, batch_size=3).inputs.size == 15
    with pytest.raises(ValueError, match="got 15 characters, expected 16"):
        character_model.windows(codes[:15], length=5, batch_size=3)


def test_unigram_and_bigram_are_counts_plus_one(codes):
    train, held_out = codes[:40], codes[40:]
    text = character_model.windows(held_out, length=5, batch_size=4)
    unigram = bigram = 0.0
    for before, after in itertools.pairwise(held_out):
        seen = sum(train == after)
        unigram -= math.log2((seen + 1) / (40 + 7)) / 20
        seen = sum((train[:-1] == before) & (train[1:] == after))
        bigram -= math.log2((seen + 1) / (sum(train[:-1] == before) + 7)) / 20
    assert character_model.unigram_bits(train, text, 7) == pytest.approx(unigram, rel=1e-12)
    assert character_model.bigram_bits(train, text, 7) == pytest.approx(bigram, rel=1e-12)


@pytest.mark.slow
def test_bits_in_windows_are_those_of_one_long_pass(model, codes):
    params = model.init(jax.random.key(0))
    text = character_model.windows(codes, length=5, batch_size=1)
    _, logits = model.apply(params, None, jnp.asarray(codes[:60, None]))
    probabilities = jax.nn.log_softmax(np.asarray(logits[:, 0], np.float64))
    expected = -np.asarray(probabilities)[np.arange(60), codes[1:]].mean() / np.log(2)
    got = character_model.bits_per_character(model, params, text)
    np.testing.assert_allclose(got, expected, rtol=FLOAT32["rtol"])


@pytest.mark.slow
def test_a_sample_is_of_the_vocabulary_and_the_key_decides_it(model):
    params = model.init(jax.random.key(0))

    def draw(seed, temperature):
        prompt, key = jnp.arange(3), jax.random.key(seed)
        return character_model.sample(
            model, params, prompt, key, length=50, temperature=temperature
        )

    sample = draw(0, 1.0)
    assert sample.shape == (50,)
    assert set(np.asarray(sample)) <= set(range(7))
    np.testing.assert_array_equal(sample, draw(0, 1.0))
    assert (sample != draw(1, 1.0)).any()


def test_a_cold_sample_is_always_the_likeliest_character(model):
    params, prompt = model.init(jax.random.key(0)), jnp.arange(3)
    sample = character_model.sample(
        model, params, prompt, jax.random.key(0), length=50, temperature=1e-6
    )
    _, logits = model.apply(params, None, jnp.concatenate([prompt, sample]))
    np.testing.assert_array_equal(sample, logits[2:-1].argmax(-1))


@pytest.mark.slow
def test_training_carries_the_state_from_window_to_window():
    """A bit, a 2, the bit again: 1/3 bit a character, for who knows the character before last.

    Who reads windows of two without what came before them knows nothing at each window's start:
    there it costs 1 bit after a 2 and 1.5 after a bit, so 5/6 bit a character in all.
    """
    bits = np.random.default_rng(0).integers(0, 2, 4000)
    codes = np.stack([bits, np.full_like(bits, 2), bits], axis=1).ravel()
    text = character_model.windows(codes, length=2, batch_size=8)
    model = character_model.make_model("lstm", 3, features=4, hidden_size=16, layers=1, rate=0.0)
    _, curve = character_model.train(
        "lstm", model, text, text, steps=400, reports=4, learning_rate=2e-2, key=jax.random.key(0)
    )
    assert [point.characters for point in curve] == [1600, 3200, 4800, 6400]
    assert 1 / 3 - 0.02 < curve[-1].bits < 0.5


def train(model, text, **options):
    """Train a tiny model on a text; return its parameters and curve."""
    settings = {"steps": 8, "reports": 4, "learning_rate": 1e-2, "key": jax.random.key(0)}
    return character_model.train("lstm", model, text, text, **settings, **options)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_end(model, codes, tmp_path, monkeypatch):
    text = jax.tree.map(jnp.asarray, character_model.windows(codes, length=5, batch_size=3))
    expected, whole = train(model, text)
    measure, reports = character_model.bits_per_character, itertools.count(1)

    def stop_at_the_third(*arguments):
        if next(reports) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(character_model, "bits_per_character", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(model, text, resume=tmp_path)
    got, curve = train(model, text, resume=tmp_path)
    assert next(reports) == 6  # 3 before, 2 after: two are not measured again
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert [(p.characters, p.bits) for p in curve] == [(p.characters, p.bits) for p in whole]
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(curve))


@pytest.mark.slow
def test_two_devices_learn_as_one_does(codes):
    text = jax.tree.map(jnp.asarray, character_model.windows(codes, length=5, batch_size=4))
    curves = []
    for devices in (1, 2):
        engine = jaxrnn.engines.sharded(2) if devices == 2 else None
        sizes = {"features": 3, "hidden_size": 4, "layers": 1, "rate": 0.0}
        model = character_model.make_model("gru", 7, **sizes, engine=engine)
        curves.append(train(model, text, devices=devices)[1])
    bits = [[point.bits for point in curve] for curve in curves]
    np.testing.assert_allclose(bits[1], bits[0], **FLOAT32)


@pytest.mark.slow
def test_gradients_can_go_back_beyond_a_window(model, codes):
    text = jax.tree.map(jnp.asarray, character_model.windows(codes, length=5, batch_size=3))
    short, same, long = (train(model, text, backpropagate=k)[1][-1].bits for k in (None, 5, 10))
    assert short == same != long


@pytest.mark.parametrize(
    "options", ["--batch 3 --devices 2", "--length 20 --backpropagate 10"], ids=str
)
def test_settings_that_do_not_fit_one_another(options, capsys):
    with pytest.raises(SystemExit):
        character_model.main(["--quick", *options.split()])
    assert ": got " in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_beats_the_bigram_model_and_writes_its_files(tmp_path, capsys):
    (tmp_path / "text").write_text(TEXT * 60)
    settings = "--quick --cell gru --hidden 16 --length 16 --batch 8 --steps 120 --reports 2"
    places = ["--text", str(tmp_path / "text"), "--out", str(tmp_path)]
    character_model.main([*settings.split(), *places])
    with (tmp_path / "character_model.csv").open() as file:
        bits = {row["model"]: float(row["bits"]) for row in csv.DictReader(file)}
    assert set(bits) == {"unigram", "bigram", "gru"}
    assert bits["gru"] < bits["bigram"] < bits["unigram"]
    assert (tmp_path / "character_model.png").stat().st_size > 10_000
    assert "bigram" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_trains_on_two_devices_and_goes_on(tmp_path, capsys):
    (tmp_path / "text").write_text(TEXT * 60)
    settings = "--quick --hidden 4 --length 16 --batch 8 --reports 2 --text text --resume run"

    def run(*options):
        character_model.main([*settings.split(), *options])
        return capsys.readouterr().out

    run("--devices=2", "--steps=4")
    assert "goes on from step 4\n" in run("--steps=8")
    assert "nothing left to train after step 8\n" in run("--steps=8")
    for refused in ("--seed", "--steps", "--hidden"):
        with pytest.raises(SystemExit):
            run("--steps=8", f"{refused}=7")
        assert "error: --resume: " in (message := capsys.readouterr().err)
        assert {"--hidden": "params"}.get(refused, refused.strip("-")) in message
    (tmp_path / "text").write_text(TEXT * 90)
    with pytest.raises(SystemExit):
        run("--steps=8")
    assert "error: --resume: batches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("", "the file is empty"), ("too short", "the text is too short")],
)
def test_a_bad_text_is_reported(tmp_path, capsys, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as error:
        character_model.main(["--text", str(path), "--out", str(tmp_path)])
    assert message in f"{error.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    "option",
    [
        *("--temperature=0", "--hidden=-1", "--steps=x", "--cell=mgu", "--resume=/dev/null"),
        *("--dropout=1", "--dropout=nan", "--dropout=-1"),
    ],
)
def test_a_bad_setting_is_reported(capsys, option):
    with pytest.raises(SystemExit):
        character_model.main([option])
    assert option.split("=")[0] in capsys.readouterr().err
