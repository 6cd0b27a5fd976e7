"""Intervals against closed forms, permutation p-values against brute force in exact fractions."""

from __future__ import annotations

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from valuelocate_utils import significance
from valuelocate_utils.significance import Interval, mean_interval, q_values, share_difference_p_values, sign_flips


def half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


# --------------------------------------------------------------------------------------------------------------- intervals
def test_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).exponential(2.0, 2000)
    found, error = mean_interval(values), 1.96 * values.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.12 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.12 * error)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    found = [mean_interval(rng.normal(0.3, 1, 50), resamples=400, seed=i) for i in range(200)]
    covered = np.mean([f.low <= 0.3 <= f.high for f in found])
    assert 0.89 <= covered <= 0.985  # 95% less the percentile method's small-sample loss, give or take 3 standard errors


@pytest.mark.parametrize("values", [np.full(7, 0.25), np.full((3, 7), 0.25), np.array([0.25]), [0.25, 0.25]])
def test_constant_data_have_no_width(values: np.ndarray) -> None:
    assert mean_interval(values) == Interval(0.25, 0.25, 0.25)


def test_interval_is_deterministic_under_the_seed() -> None:
    values = np.random.default_rng(3).normal(size=(4, 30))
    for data in (values, values[0]):
        assert mean_interval(data, seed=5) == mean_interval(data, seed=5) != mean_interval(data, seed=6)


def test_two_axes_agree_with_the_closed_form_of_an_additive_table() -> None:
    """For values d_i + q_j the bootstrap variance of the mean is var(d) / D + var(q) / Q."""
    rng = np.random.default_rng(4)
    d, q = rng.normal(0, 1, 40), rng.normal(0, 3, 150)
    found = mean_interval(d[:, None] + q, resamples=4000)
    assert found.mean == pytest.approx(d.mean() + q.mean())
    assert half_width(found) == pytest.approx(1.96 * np.sqrt(d.var() / 40 + q.var() / 150), rel=0.08)


def test_draws_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    questions, draws = rng.normal(0, 1, 100), np.linspace(-2, 2, 10)
    both, questions_only = mean_interval(draws[:, None] + questions), mean_interval(questions)
    assert half_width(both) > 3 * half_width(questions_only)


def test_draws_that_agree_leave_the_interval_of_the_questions() -> None:
    questions = np.random.default_rng(6).normal(0, 1, 100)
    both = mean_interval(np.tile(questions, (10, 1)), resamples=4000)
    assert half_width(both) == pytest.approx(half_width(mean_interval(questions, resamples=4000)), rel=0.08)


def test_a_single_draw_is_the_plain_interval() -> None:
    values = np.random.default_rng(7).normal(size=20)
    assert mean_interval(values[None]) == mean_interval(values)


# --------------------------------------------------------------------------------------------------------------- sign flips
@pytest.mark.parametrize("permutations", [16, 17, 2000])
def test_few_blocks_are_enumerated(permutations: int) -> None:
    flips = sign_flips(4, permutations)
    assert len(flips) == 16
    assert {tuple(row) for row in flips.tolist()} == set(itertools.product((-1, 1), repeat=4))


def test_many_blocks_are_drawn_and_led_by_the_identity() -> None:
    flips = sign_flips(12, 4000)
    assert flips.shape == (4000, 12) and set(np.unique(flips)) == {-1, 1}
    assert (flips[0] == 1).all()
    assert np.abs(flips.mean(0)).max() < 4 / np.sqrt(4000)
    assert np.abs(np.corrcoef(flips.T) - np.eye(12)).max() < 5 / np.sqrt(4000)


def test_one_pattern_short_of_all_is_drawn() -> None:
    assert len(sign_flips(4, 15)) == 15


def test_drawn_flips_follow_the_seed() -> None:
    assert (sign_flips(20, 50, 1) == sign_flips(20, 50, 1)).all()
    assert (sign_flips(20, 50, 1) != sign_flips(20, 50, 2)).any()


# ----------------------------------------------------------------------------------------------------------------- p-values
def brute_force(plus: np.ndarray, plus_n: np.ndarray, minus: np.ndarray, minus_n: np.ndarray) -> list[float]:
    """Every swap of the two labels in every subset of blocks, one neuron at a time, in exact fractions."""
    found, blocks = [], range(len(plus))
    for neuron in range(plus.shape[1]):
        differences = []
        for swap in itertools.product((False, True), repeat=len(plus)):
            a = sum(int((minus if swap[b] else plus)[b, neuron]) for b in blocks)
            a_n = sum(int((minus_n if swap[b] else plus_n)[b]) for b in blocks)
            c = sum(int((plus if swap[b] else minus)[b, neuron]) for b in blocks)
            c_n = sum(int((plus_n if swap[b] else minus_n)[b]) for b in blocks)
            differences.append(abs(Fraction(a, a_n) - Fraction(c, c_n)))
        found.append(sum(d >= differences[0] for d in differences) / len(differences))
    return found


def counts(blocks: int, neurons: int, seed: int, equal: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random token counts; with `equal`, the same number of tokens under both aspects of every block."""
    rng = np.random.default_rng(seed)
    plus_n = rng.integers(3, 30, blocks)
    minus_n = plus_n if equal else rng.integers(3, 30, blocks)
    plus, minus = (rng.binomial(n[:, None], p, (blocks, neurons)) for n, p in ((plus_n, 0.55), (minus_n, 0.4)))
    return plus.astype(float), plus_n.astype(float), minus.astype(float), minus_n.astype(float)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 5, 7])
def test_p_values_are_those_of_all_swaps(blocks: int, equal: bool) -> None:
    data = counts(blocks, 6, seed=blocks, equal=equal)
    assert share_difference_p_values(*data).tolist() == pytest.approx(brute_force(*data))


def test_blocks_of_very_unequal_size_are_pooled_by_token() -> None:
    data = tuple(np.array(x, float) for x in ([[1], [90], [3]], [2, 200, 4], [[5], [10], [0]], [50, 20, 300]))
    assert share_difference_p_values(*data).tolist() == pytest.approx(brute_force(*data))


def test_p_values_do_not_care_which_aspect_is_positive() -> None:
    plus, plus_n, minus, minus_n = counts(6, 20, seed=1)
    assert share_difference_p_values(plus, plus_n, minus, minus_n).tolist() == share_difference_p_values(minus, minus_n, plus, plus_n).tolist()


def test_a_long_list_of_patterns_is_taken_in_parts_without_changing_the_result() -> None:
    """2**14 patterns of 14 blocks exceed one part; here all swaps are counted in one whole-array step of integers."""
    plus, n, minus, _ = counts(14, 2, seed=2, equal=True)
    swaps = np.array(list(itertools.product((1, -1), repeat=14)))
    difference = np.abs(swaps @ (plus - minus).astype(int))
    expected = (difference >= difference[0]).mean(0)
    assert share_difference_p_values(plus, n, minus, n, permutations=2**14).tolist() == pytest.approx(expected.tolist())


def test_drawn_swaps_approach_all_swaps() -> None:
    data = counts(9, 8, seed=3)
    drawn = share_difference_p_values(*data, permutations=500)
    assert drawn == pytest.approx(np.array(brute_force(*data)), abs=4 * 0.5 / np.sqrt(500))


def test_the_observed_labels_count_so_no_p_value_is_zero() -> None:
    n = np.full(30, 10.0)
    found = share_difference_p_values(np.full((30, 1), 9.0), n, np.full((30, 1), 1.0), n, permutations=200)
    assert found.tolist() == [1 / 200]


def test_a_neuron_without_difference_has_p_one() -> None:
    n = np.array([4.0, 9.0])
    assert share_difference_p_values(np.array([[0.0, 2], [0, 7]]), n, np.array([[0.0, 2], [0, 7]]), n).tolist() == [1, 1]


def test_p_values_of_null_neurons_are_about_uniform() -> None:
    rng = np.random.default_rng(8)
    n = np.full(11, 50.0)
    found = share_difference_p_values(*(x for _ in range(2) for x in (rng.binomial(50, 0.3, (11, 3000)).astype(float), n)))
    assert np.mean(found <= 0.05) == pytest.approx(0.05, abs=0.012)
    assert np.mean(found <= 0.5) == pytest.approx(0.5, abs=0.04)


def test_memory_is_bounded_for_many_neurons() -> None:
    """2,000 patterns by 6,000 neurons are 96 MB an array (by a 0.5B model's 116,736, 1.9 GB): they must not be held whole."""
    plus, plus_n, minus, minus_n = counts(12, 6000, seed=9)
    tracemalloc.start()
    try:
        share_difference_p_values(plus, plus_n, minus, minus_n, permutations=2000)
        assert tracemalloc.get_traced_memory()[1] < 90e6
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------------------------------------------- q-values
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.02, 0.04, 0.04, 0.02]),
        ([0.5, 0.02, 0.021, 0.01], [0.5, 0.028, 0.028, 0.028]),  # 0.01 * 4 / 1 and 0.02 * 4 / 2 fall to 0.021 * 4 / 3
        ([0.9, 0.8, 0.6], [0.9, 0.9, 0.9]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([0.03], [0.03]),
    ],
)
def test_q_values_are_benjamini_hochberg(p: list[float], q: list[float]) -> None:
    assert significance.q_values(np.array(p)).tolist() == pytest.approx(q)


def test_false_discoveries_stay_under_the_rate() -> None:
    """200 planted among 2,000: of those with q <= 0.1 about a tenth at most are null."""
    rng = np.random.default_rng(10)
    p = np.concatenate([rng.uniform(0, 0.001, 200), rng.uniform(0, 1, 1800)])
    kept = q_values(p) <= 0.1
    assert kept[:200].mean() > 0.95
    assert 0.02 < kept[200:].sum() / kept.sum() < 0.15
