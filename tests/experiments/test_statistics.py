import numpy as np
import pytest

from experiments._statistics import LEAST_GROUPS, bootstrap, spearman


def test_spearman_is_its_closed_form():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 20))
    differences = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    expected = 1 - 6 * np.sum(differences**2) / (20 * (20**2 - 1))
    assert spearman(x, y) == pytest.approx(expected, rel=1e-12)
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert np.isnan(spearman(x, np.ones(20)))


def test_an_interval_is_as_wide_as_groups_differ():
    generator = np.random.default_rng(0)
    groups = [tuple(generator.normal(size=(2, 3))) for _ in range(10)]
    middle, low, high = bootstrap(groups, seed=0, draws=300)
    assert low < middle < high
    assert bootstrap(groups, seed=0, draws=300) == (middle, low, high)
    assert np.isnan(bootstrap([(x, np.ones(3)) for x, _ in groups], seed=0)).all()
    few = bootstrap(groups[: LEAST_GROUPS - 1], seed=0)
    assert np.isfinite(few[0])
    assert np.isnan(few[1:]).all()
    # The same points many times over are no more evidence if they come in the same groups.
    copied = [tuple(np.tile(part, 100) for part in group) for group in groups]
    _, copied_low, copied_high = bootstrap(copied, seed=0, draws=300)
    assert copied_high - copied_low == pytest.approx(high - low, rel=0.05)
