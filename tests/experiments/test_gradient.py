import numpy as np
import pytest

from experiments._gradient import horizon


def brute_force_horizon(norms):
    steps = 0
    while steps + 1 < len(norms) and norms[steps + 1] >= 0.01 * norms[0]:
        steps += 1
    return steps


@pytest.mark.parametrize(
    "norms",
    [
        0.5 ** np.arange(100),
        np.ones(100),
        2.0 ** np.arange(100),
        [1, 0, 1],  # back above the level after a gap
        [3.0, 0.03, 0.029],
        [1.0],
        np.exp(np.random.default_rng(0).normal(-2, 1.5, 100)),
    ],
)
def test_horizon_is_its_definition(norms):
    assert horizon(np.array(norms)) == brute_force_horizon(norms)
