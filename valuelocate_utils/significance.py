"""Intervals, permutation p-values and false-discovery rates; the unit of inference is the question. Thin over scipy."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over questions with a 95% percentile bootstrap interval.

    Args:
        values: [question] or [draw, question]; with draws (of a random control) both axes are resampled, so that the
            interval covers the choice of neurons as well as of questions.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    mean, rng = float(values.mean()), np.random.default_rng(seed)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    if len(values) == 1:
        found = stats.bootstrap((values[0],), np.mean, n_resamples=resamples, method="percentile", rng=rng).confidence_interval
        return Interval(mean, float(found.low), float(found.high))
    draws, questions = values.shape
    weights_d = rng.multinomial(draws, np.full(draws, 1 / draws), size=resamples) / draws
    weights_q = rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples) / questions
    means = np.einsum("rd,dq,rq->r", weights_d, values, weights_q, optimize=True)
    return Interval(mean, *map(float, np.quantile(means, (0.025, 0.975))))


def sign_flips(blocks: int, permutations: int, seed: int = 0) -> np.ndarray:
    """Signs [permutation, block]: every pattern where there are at most `permutations`, else random ones led by the identity."""
    if 2**blocks <= permutations:
        return np.array(list(itertools.product((1.0, -1.0), repeat=blocks)))
    flips = np.random.default_rng(seed).choice((1.0, -1.0), size=(permutations, blocks))
    flips[0] = 1.0
    return flips


def share_difference_p_values(
    plus: np.ndarray, plus_n: np.ndarray, minus: np.ndarray, minus_n: np.ndarray, permutations: int = 2000, seed: int = 0
) -> np.ndarray:
    """Two-sided p-value of a difference of pooled shares, by swapping the two labels within question blocks.

    Args:
        plus, minus: [block, neuron], tokens at which a neuron was active under the positive / negative aspect.
        plus_n, minus_n: [block], tokens in all.

    Returns:
        [neuron]: the share of label patterns (the observed one counts) whose absolute difference is at least the observed.
    """
    flips = sign_flips(len(plus), permutations, seed)
    middle, half = (plus + minus).sum(0) / 2, (plus - minus) / 2
    middle_n, half_n = (plus_n + minus_n).sum() / 2, (plus_n - minus_n) / 2
    at_least = np.zeros(plus.shape[1])
    observed = np.abs(plus.sum(0) / plus_n.sum() - minus.sum(0) / minus_n.sum())
    # A few arrays of [patterns in a part, neuron] live at once: 2**20 cells keep them at tens of megabytes.
    for part in np.array_split(flips, -(-len(flips) * plus.shape[1] // 2**20)):
        shift, shift_n = part @ half, (part @ half_n)[:, None]
        difference = (middle + shift) / (middle_n + shift_n) - (middle - shift) / (middle_n - shift_n)
        at_least += (np.abs(difference) >= observed - 1e-12).sum(0)
    return at_least / len(flips)


def q_values(p_values: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values."""
    return stats.false_discovery_control(p_values)
