"""Sequential digits: the reader of IDX files, the pixels' order, and that it learns."""

import csv
import gzip
import re

import jax
import numpy as np
import pytest

from experiments import sequential_digits as digits

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([7, 0], np.uint8)


def idx(array, *, code=8):
    """The bytes of an IDX file, as its description says: big-endian lengths, then the data."""
    header = bytes([0, 0, code, array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder, parts=("train", "t10k"), images=IMAGES, labels=LABELS):
    folder.mkdir(exist_ok=True)
    for part in parts:
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [IMAGES, LABELS, np.zeros((0, 2), np.uint8)])
def test_idx_files_are_read_gzipped_or_not(tmp_path, array):
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "small.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "small.gz"):
        read = digits.read_idx(tmp_path / name)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty", b"", "not an IDX file"),
        ("text", b"hello world", "not an IDX file"),
        ("floats", idx(np.ones(3, np.float32), code=0x0D), "got IDX type 0x0d, expected unsigned"),
        ("header", idx(IMAGES)[:9], "got 9 bytes, expected"),
        ("truncated", idx(IMAGES)[:-1], r"got 39 bytes, expected 40 for shape \[2, 3, 4\]"),
        ("longer", idx(IMAGES) + b"x", "got 41 bytes, expected 40"),
        ("huge", bytes([0, 0, 8, 2]) + b"\xff" * 8, r"expected 18446744065119617037 for shape"),
        ("truncated.gz", gzip.compress(idx(IMAGES), mtime=0)[:-9], "truncated.gz: .*ended before"),
        (
            "damaged.gz",
            gzip.compress(idx(IMAGES), mtime=0)[:10] + b"\xff" * 20,
            "damaged.gz: Error",
        ),
        ("foreign.gz", idx(IMAGES), "foreign.gz: Not a gzipped file"),
    ],
    # The names alone: an id that holds the bytes would differ where they hold the time of writing.
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_truncated_or_foreign_file_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        digits.read_idx(tmp_path / name)


def test_mnist_is_found_by_each_of_its_names(tmp_path):
    write_mnist(tmp_path)
    expected = digits.read_mnist(tmp_path, "train")
    np.testing.assert_array_equal(expected.images, IMAGES)
    np.testing.assert_array_equal(expected.labels, LABELS)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "train-images.idx3-ubyte")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    for got, want in zip(digits.read_mnist(tmp_path, "train"), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": ("train",)}, "no file t10k-images-idx3-ubyte"),
        ({"images": IMAGES[0]}, "images of shape (3, 4)"),
        ({"labels": LABELS[:1]}, "labels of (1,)"),
        ({"labels": LABELS + 3}, "labels from 0 to 9"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "one at least"),
        ({"images": IMAGES[:, :0]}, "images of shape (2, 0, 4)"),
    ],
)
def test_files_that_are_no_mnist_are_reported(tmp_path, capsys, change, message):
    write_mnist(tmp_path, **change)
    with pytest.raises(SystemExit):
        digits.main(["--mnist", str(tmp_path)])
    printed = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"error: --mnist {tmp_path}" in printed
    assert message in printed


def test_images_of_both_parts_are_of_one_size(tmp_path, capsys):
    write_mnist(tmp_path, parts=["train"])
    write_mnist(tmp_path, parts=["t10k"], images=IMAGES[:, 1:])
    with pytest.raises(SystemExit):
        digits.main(["--mnist", str(tmp_path)])
    printed = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "got test images of (2, 4) pixels, expected (3, 4)" in printed


# Digits -----------------------------------------------------------------------------------------


def test_no_small_digit_is_in_both_parts():
    train, test = digits.read_small_digits(0)
    assert len(train.labels) == 1437
    assert len(test.labels) == 360
    assert train.images.max() == train.most_ink == 16
    images = np.concatenate([part.images.reshape(-1, 64) for part in (train, test)])
    assert len(np.unique(images, axis=0)) == 1797
    assert (test.labels != digits.read_small_digits(1)[1].labels).any()


def test_every_image_is_permuted_alike():
    _, test = digits.read_small_digits(0)
    mixed = digits.permuted(test, seed=3)
    assert (mixed.images[0] != test.images[0]).any()
    order = np.random.default_rng(3).permutation(64)
    for number in (0, 5):
        np.testing.assert_array_equal(
            mixed.images[number].ravel(), test.images[number].ravel()[order]
        )


# Learning ---------------------------------------------------------------------------------------


def test_accuracy_is_counted_over_seeds_with_its_standard_error():
    accuracies = np.array([[0.1, 0.9], [0.2, 0.8], [0.1, 0.4]])
    run = digits.Run("gru", 10, np.array([5, 10]), accuracies, 1, 2.0)
    row = digits.summary(run)
    assert row["accuracy %"] == pytest.approx(70)
    # Deviations 20, 10 and -30: a variance of 1400 / 2, by the square root of 3.
    assert row["standard error"] == pytest.approx(np.sqrt(700 / 3))
    assert (row["lowest"], row["highest"], row["diverged"]) == (40, 90, "1 of 3")
    assert np.isnan(digits.standard_error(accuracies[:1])).all()


def test_a_single_seed_has_no_standard_error_in_its_label():
    _, test = digits.read_small_digits(0)
    run = digits.Run("gru", 10, np.array([5, 10]), np.array([[0.5, 0.9]]), 0, 2.0)
    axes = digits.draw([run], test, order="").axes[1]
    assert "GRU\n90.0%" in [text.get_text() for text in axes.texts]


@pytest.mark.slow
def test_two_patterns_are_learnt_on_two_devices():
    """Of an image that is bright at its first or at its last pixel."""
    images = np.zeros((40, 2, 3), np.uint8)
    images[:20, 0, 0] = images[20:, -1, -1] = 4
    data = digits.Digits(images, np.repeat(np.array([3, 8], np.uint8), 20), 4)
    settings = {"hidden_size": 8, "batch_size": 16, "learning_rate": 3e-2}
    keys = jax.random.split(jax.random.key(0), 2)
    run = digits.learn("gru", data, data, keys, steps=60, reports=2, **settings)
    assert run.accuracies.shape == (2, 2)
    np.testing.assert_array_equal(run.steps, [30, 60])
    np.testing.assert_array_equal(run.accuracies[:, -1], 1)
    assert run.diverged == 0


@pytest.mark.slow
def test_the_script_learns_and_writes_its_files(tmp_path, capsys):
    settings = "--quick --cell gru --steps 120 --reports 2 --batch 32"
    digits.main([*settings.split(), "--out", str(tmp_path)])
    with (tmp_path / "sequential_digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["60", "120"] * 2
    for row in rows:
        if row["step"] == "120":
            assert float(row["accuracy"]) > 0.3
    assert (tmp_path / "sequential_digits.png").stat().st_size > 10_000
    assert "standard error" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_reads_mnist_permuted(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4), np.uint8)
    folder = write_mnist(
        tmp_path / "mnist", images=images, labels=np.arange(20, dtype=np.uint8) % 10
    )
    settings = "--quick --permuted --cell identity --seeds 1 --steps 2 --reports 1 --hidden 4"
    digits.main([*settings.split(), "--mnist", str(folder), "--out", str(tmp_path)])
    assert (tmp_path / "sequential_digits.csv").exists()


@pytest.mark.parametrize("option", ["--steps=0", "--seeds=x", "--cell=mgu", "--devices=0"])
def test_a_bad_setting_is_reported(capsys, option):
    with pytest.raises(SystemExit):
        digits.main([option])
    assert option.split("=")[0] in capsys.readouterr().err
