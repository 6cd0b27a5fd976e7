"""Scores and selections on hand-made shards whose shares, percentiles and swaps are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from valuelocate_utils import localization
from valuelocate_utils.runs import SCHEMAS

Shard = dict[str, torch.Tensor]


def shard(n_tokens: int, n_positive: Sequence[Sequence[int]], sample: np.ndarray | None = None) -> Shard:
    """A shard of counts [layer, neuron] and, where it matters, sampled activations [token, layer, neuron]."""
    counts = torch.tensor(n_positive)
    sample = np.zeros((2, *counts.shape)) if sample is None else sample
    return {"n_tokens": torch.tensor([n_tokens]), "n_positive": counts, "sample": torch.tensor(sample, dtype=torch.float32)}


@pytest.fixture
def plus() -> list[Shard]:
    """Two layers of two neurons, 4 + 6 tokens: shares 0.6, 0.1, 0.5, 1."""
    return [shard(4, [[1, 1], [2, 4]]), shard(6, [[5, 0], [3, 6]])]


@pytest.fixture
def minus() -> list[Shard]:
    """2 + 3 tokens: shares 0.2, 0.4, 0.6, 1."""
    return [shard(2, [[1, 1], [0, 2]]), shard(3, [[0, 1], [3, 3]])]


# ---------------------------------------------------------------------------------------------------------------- the score
def test_shares_pool_tokens_over_shards(plus: list[Shard], minus: list[Shard]) -> None:
    assert localization.active_share(plus).tolist() == [0.6, 0.1, 0.5, 1.0]  # the mean of shares would give 0.5417 first
    assert localization.active_share(minus).tolist() == [0.2, 0.4, 0.6, 1.0]


def test_probability_difference_is_the_difference_of_shares(plus: list[Shard], minus: list[Shard]) -> None:
    found = localization.probability_difference(plus, minus)
    assert list(zip(found["layer"], found["neuron"])) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["p_plus"].tolist() == [0.6, 0.1, 0.5, 1.0]
    assert found["p_minus"].tolist() == [0.2, 0.4, 0.6, 1.0]
    assert found["score"].tolist() == pytest.approx([0.4, -0.3, -0.1, 0.0])


def test_exchanging_the_aspects_negates_the_score(plus: list[Shard], minus: list[Shard]) -> None:
    there, back = localization.probability_difference(plus, minus), localization.probability_difference(minus, plus)
    assert there["score"].tolist() == (-back["score"]).tolist()
    assert there["a95_plus"].tolist() == back["a95_minus"].tolist()
    assert there["p_value"].tolist() == back["p_value"].tolist()


def test_layers_of_unequal_height_and_width_keep_their_coordinates() -> None:
    counts = np.zeros((3, 5), int)
    counts[2, 1] = 4
    found = localization.probability_difference([shard(4, counts.tolist())], [shard(4, np.zeros((3, 5), int).tolist())])
    assert found.loc[found["score"] == 1, ["layer", "neuron"]].to_numpy().tolist() == [[2, 1]]
    assert len(found) == 15


def test_a_neuron_that_separates_every_block_has_the_smallest_p_value() -> None:
    """Of the 2**5 swaps only the observed one and its mirror image reach it; the other neuron never differs."""
    found = localization.probability_difference([shard(8, [[7, 3]])] * 5, [shard(8, [[1, 3]])] * 5)
    assert found["p_value"].tolist() == [2 / 32, 1]
    assert found["q_value"].tolist() == [2 * 2 / 32, 1]


def test_unequal_numbers_of_shards_are_refused(plus: list[Shard], minus: list[Shard]) -> None:
    with pytest.raises(ValueError, match="2 positive but 1 negative"):
        localization.probability_difference(plus, minus[:1])


# ---------------------------------------------------------------------------------------------------------------------- a95
def test_percentile_of_a_known_sample() -> None:
    """0..100 in any order has its 95th percentile at 95; each neuron has its own, and shards are pooled."""
    values = np.random.default_rng(0).permutation(101).astype(float)
    sample = values[:, None, None] * np.array([[1.0, -1.0], [0.5, 0.0]]) + np.array([[0.0, 0.0], [2.0, 7.0]])
    parts = [shard(50, [[0, 0], [0, 0]], sample[:30]), shard(90, [[0, 0], [0, 0]], sample[30:])]
    assert localization.percentile95(parts).tolist() == pytest.approx([95, -5, 49.5, 7])


def test_a95_columns_are_of_their_aspect() -> None:
    high, low = (shard(4, [[2]], np.full((3, 1, 1), value)) for value in (3.0, -1.0))
    found = localization.probability_difference([high], [low])
    assert (found["a95_plus"].item(), found["a95_minus"].item()) == (3, -1)


# ----------------------------------------------------------------------------------------------------------------- selecting
def scores(*values: float) -> pd.DataFrame:
    n = np.arange(len(values))
    return pd.DataFrame(
        {
            "dimension": "conservation", "method": "probability_difference", "site": "gate", "layer": n // 2, "neuron": n % 2, "score": values,
            "p_plus": 0.5, "p_minus": 0.5, "a95_plus": 10.0 + n, "a95_minus": 20.0 + n, "p_value": 0.5, "q_value": 0.5,
        }
    )  # fmt: skip


def test_select_reads_the_aspect_from_the_sign_and_takes_its_a95() -> None:
    found = localization.select(scores(0.3, -0.2, 0.05, -0.05, 0.15), 0.1)
    assert found[["aspect", "layer", "neuron", "score", "a95"]].to_numpy().tolist() == [
        ["positive", 0, 0, 0.3, 10.0], ["negative", 0, 1, -0.2, 21.0], ["positive", 2, 0, 0.15, 14.0],
    ]  # fmt: skip
    assert list(found.index) == [0, 1, 2]


@pytest.mark.parametrize(("threshold", "kept"), [(0.25, [0.25, -0.25, 0.5]), (0.2500001, [0.5]), (0.5, [0.5]), (0.6, [])])
def test_the_threshold_is_inclusive_on_both_sides(threshold: float, kept: list[float]) -> None:
    found = localization.select(scores(0.25, -0.25, 0.5, 0.2499999), threshold)
    assert found["score"].tolist() == kept


def test_a_share_difference_of_exactly_the_threshold_is_kept() -> None:
    """6/10 - 5/10 and 3/10 - 4/10 are one tenth; in floats 0.6 - 0.5 is 0.09999999999999998."""
    table = localization.probability_difference([shard(10, [[6, 3, 5]])], [shard(10, [[5, 4, 5]])])
    found = localization.select(table.assign(dimension="conservation", method="probability_difference"), 0.1)
    assert found["neuron"].tolist() == [0, 1]


@pytest.mark.parametrize("threshold", [0.1, 0.9], ids=["some neurons", "no neuron"])
def test_a_selection_is_a_valid_table_of_neurons(threshold: float) -> None:
    SCHEMAS["neurons"].validate(localization.select(scores(0.3, -0.2, 0.05), threshold))


# ------------------------------------------------------------------------------------------------------------------ the null
def test_null_count_of_a_neuron_that_needs_all_blocks_is_near_zero() -> None:
    """Eight blocks agree; only 2 of 2**8 swaps reach the full difference, so a count of 0.0078 is expected."""
    plus, minus = [shard(10, [[8]])] * 8, [shard(10, [[2]])] * 8
    assert localization.null_count(plus, minus, 0.6 - 1e-9, shuffles=400, seed=0) < 0.03


def test_null_count_is_the_mean_over_all_swaps() -> None:
    rng = np.random.default_rng(1)
    counts, tokens = rng.integers(0, 9, (2, 3, 1, 12)), rng.integers(9, 20, (2, 3))
    plus, minus = ([shard(int(n), c.tolist()) for n, c in zip(tokens[side], counts[side])] for side in (0, 1))
    expected = []
    for swap in itertools.product((0, 1), repeat=3):
        at = np.arange(3)
        share = [counts[which, at].sum((0, 1)) / tokens[which, at].sum() for which in (np.array(swap), 1 - np.array(swap))]
        expected.append((np.abs(share[0] - share[1]) >= 0.15).sum())
    assert 1 < np.mean(expected) < 11
    found = localization.null_count(plus, minus, 0.15, shuffles=2000, seed=2)
    assert found == pytest.approx(np.mean(expected), abs=4 * np.std(expected) / np.sqrt(2000))


def test_null_count_follows_the_seed(plus: list[Shard], minus: list[Shard]) -> None:
    counts = [localization.null_count(plus, minus, 0.31, shuffles=5, seed=seed) for seed in (0, 0, *range(1, 20))]
    assert counts[0] == counts[1] and len(set(counts)) > 1


# ------------------------------------------------------------------------------------------------------------------ agreement
def test_split_half_gives_the_difference_of_even_and_of_odd_shards() -> None:
    plus = [shard(4, [[4]]), shard(5, [[1]]), shard(6, [[1]]), shard(5, [[2]])]
    minus = [shard(10, [[1]]), shard(2, [[1]]), shard(10, [[3]]), shard(8, [[4]])]
    found = localization.split_half(plus, minus)
    assert found.columns.tolist() == ["even", "odd"]
    assert found.loc[0].tolist() == pytest.approx([5 / 10 - 4 / 20, 3 / 10 - 5 / 10])


@pytest.mark.parametrize("side", [0, 1], ids=["plus", "minus"])
@pytest.mark.parametrize("at", range(4))
def test_the_halves_share_no_shard(at: int, side: int) -> None:
    """A shard that changes moves one half and leaves the other."""
    shards = [[shard(4, [[2]])] * 4, [shard(4, [[1]])] * 4]
    before = localization.split_half(*shards).loc[0]
    shards[side][at] = shard(4, [[4]])
    moved = localization.split_half(*shards).loc[0]
    assert (moved != before).tolist() == [at % 2 == 0, at % 2 == 1]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([(0, 1), (0, 2), (1, 1)], [(0, 1), (1, 1), (1, 5)], 2 / 4),
        ([(0, 1)], [(1, 0)], 0),
        ([(0, 1), (1, 1)], [(1, 1), (0, 1)], 1),
        ([(0, 1)], [], 0),
        ([], [], 0),
    ],
)
def test_jaccard(a: list[tuple[int, int]], b: list[tuple[int, int]], expected: float) -> None:
    tables = [pd.DataFrame(rows, columns=["layer", "neuron"], dtype=int) for rows in (a, b)]
    assert localization.jaccard(*tables) == expected
