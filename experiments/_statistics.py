"""Rank correlation, with an interval from bootstrap samples of groups."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

# Of fewer groups a bootstrap sample is all too often all of one or the other.
LEAST_GROUPS = 5


def spearman(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Return the correlation of ranks; not a number where all values of one are equal."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def bootstrap(
    groups: Sequence[Sequence[np.ndarray]], seed: int, draws: int = 1000
) -> tuple[float, float, float]:
    """Return the rank correlation of all points, and a 95% interval from resampled groups.

    A group is the x and the y of points that belong together. Of fewer than `LEAST_GROUPS` the
    interval is not a number: their few resamplings say nothing of its ends.
    """
    generator = np.random.default_rng(seed)

    def correlation(chosen: Sequence[Sequence[np.ndarray]]) -> float:
        return spearman(*(np.concatenate(column) for column in zip(*chosen, strict=True)))

    middle = correlation(groups)
    if np.isnan(middle) or len(groups) < LEAST_GROUPS:
        return middle, np.nan, np.nan
    samples = [
        correlation([groups[place] for place in generator.integers(len(groups), size=len(groups))])
        for _ in range(draws)
    ]
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return middle, float(low), float(high)
