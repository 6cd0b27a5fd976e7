"""The theory module: circle, refined values, portrait key and scoring."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from valuelocate_utils import schwartz

# The key as PAPER.md prints it, two letters a value.
PRINTED_KEY = """CO 7,16,28,36; TR 9,20,25,38; BE 12,18,27,33; UN 3,8,19,23,29,40; SD 1,11,22,34; ST 6,15,30; HE 10,26,37;
AC 4,13,24,32; PO 2,17,39; SE 5,14,21,31,35"""
LETTERS = {
    "CO": "conformity", "TR": "tradition", "BE": "benevolence", "UN": "universalism", "SD": "self_direction", "ST": "stimulation",
    "HE": "hedonism", "AC": "achievement", "PO": "power", "SE": "security",
}  # fmt: skip


def flat(rating: float, **changed: float) -> pd.DataFrame:
    """One PVQ40 respondent who rates every portrait alike, except the items of some values."""
    row = {item: rating for item in range(1, 41)}
    for value, other in changed.items():
        row |= {item: other for item in schwartz.PVQ40_KEY[value]}
    return pd.DataFrame([row], dtype=float)


# ------------------------------------------------------------------------------------------------------------- the circle
def test_cosine_matrix_is_the_closed_form() -> None:
    matrix = schwartz.cosine_matrix()
    order = ["openness_to_change", "self_transcendence", "conservation", "self_enhancement"]
    assert list(matrix.index) == list(matrix.columns) == order
    assert matrix.to_numpy().tolist() == [[1, 0, -1, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, -1, 0, 1]]


def test_opposites_are_the_two_axes_of_the_theory() -> None:
    axes = [{"openness_to_change", "conservation"}, {"self_enhancement", "self_transcendence"}]
    for dimension in schwartz.DIMENSIONS:
        assert {dimension, schwartz.OPPOSITE[dimension]} in axes
        assert schwartz.cosine(dimension, schwartz.OPPOSITE[dimension]) == -1


def test_angles_follow_the_basic_values_round_the_circle() -> None:
    arcs = [dimension for dimension, _ in itertools.groupby(schwartz.BASIC_VALUES.values())]
    assert arcs == sorted(schwartz.DIMENSIONS, key=schwartz.ANGLES.__getitem__)


def test_cosine_never_gives_negative_zero() -> None:
    assert not np.signbit(schwartz.cosine_matrix().to_numpy()[schwartz.cosine_matrix() == 0]).any()


@pytest.mark.parametrize("pair", [("power", "conservation"), ("conservation", "Conservation")])
def test_cosine_of_an_unknown_dimension_lists_the_four(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="unknown dimension '(power|Conservation)'") as caught:
        schwartz.cosine(*pair)
    assert all(dimension in str(caught.value) for dimension in schwartz.DIMENSIONS)


# ------------------------------------------------------------------------------------------------------------- the values
def test_nineteen_refined_values_once_each() -> None:
    keys = [value.key for value in schwartz.REFINED_VALUES]
    assert len(keys) == len(set(keys)) == len({value.label for value in schwartz.REFINED_VALUES}) == 19


def test_only_face_and_humility_stand_outside_the_higher_order_values() -> None:
    assert {value.key for value in schwartz.REFINED_VALUES if value.dimension is None} == {"face", "humility"}
    assert {d: len(values) for d, values in schwartz.VALUES_OF.items()} == {
        "openness_to_change": 4, "self_transcendence": 5, "conservation": 5, "self_enhancement": 3,
    }  # fmt: skip


def test_a_refined_value_lies_in_the_dimension_of_its_basic_value() -> None:
    for value in schwartz.REFINED_VALUES:
        for basic, dimension in schwartz.BASIC_VALUES.items():
            if value.key.startswith(basic):
                assert value.dimension == dimension, value.key


# ----------------------------------------------------------------------------------------------------------- the portraits
def test_pvq40_key_covers_forty_items_exactly_once() -> None:
    assert sorted(itertools.chain(*schwartz.PVQ40_KEY.values())) == list(range(1, 41))


def test_pvq40_key_is_the_printed_one() -> None:
    printed = {}
    for part in PRINTED_KEY.replace("\n", " ").split(";"):
        letters, items = part.split()
        printed[LETTERS[letters]] = tuple(int(item) for item in items.split(","))
    assert schwartz.PVQ40_KEY == printed


def test_a_respondent_with_known_centring() -> None:
    # 37 items at 3 and the three of power at 6: MRAT = (37 * 3 + 3 * 6) / 40 = 3.225.
    scores = schwartz.portrait_scores(flat(3, power=6)).iloc[0]
    assert scores["power"] == pytest.approx(2.775)
    assert scores[["achievement", "security", "universalism"]].tolist() == pytest.approx([-0.225] * 3)
    assert scores["self_enhancement"] == pytest.approx((2.775 - 0.225) / 2)
    assert scores[["openness_to_change", "conservation", "self_transcendence"]].tolist() == pytest.approx([-0.225] * 3)
    assert list(scores.index) == [*schwartz.PVQ40_KEY, *schwartz.DIMENSIONS]


def test_higher_order_averages_values_and_not_items() -> None:
    # MRAT 3: stimulation (one item) 6 - 3 = 3, hedonism (three items) 2 - 3 = -1. Values average to 1, items to 0.
    scores = schwartz.portrait_scores(pd.DataFrame([{1: 6, 2: 1, 3: 1, 4: 4}]), {"stimulation": (1,), "hedonism": (2, 3, 4)}).iloc[0]
    assert (scores["stimulation"], scores["hedonism"], scores["openness_to_change"]) == (3, -1, 1)
    assert np.isnan(scores["conservation"])


def test_a_constant_added_to_all_ratings_changes_nothing() -> None:
    ratings = pd.DataFrame(np.random.default_rng(0).integers(1, 5, (3, 40)), columns=range(1, 41))
    moved = schwartz.portrait_scores(ratings + 2)
    pd.testing.assert_frame_equal(moved, schwartz.portrait_scores(ratings))
    assert moved.to_numpy().std() > 0.1


def test_missing_answers_leave_means_of_the_others() -> None:
    key = {"stimulation": (1, 2), "hedonism": (3,), "power": (4,)}
    scores = schwartz.portrait_scores(pd.DataFrame([{1: 5, 2: np.nan, 3: 2, 4: np.nan}]), key).iloc[0]
    assert (scores["stimulation"], scores["hedonism"], scores["openness_to_change"]) == (1.5, -1.5, 0)
    assert np.isnan(scores["power"]) and np.isnan(scores["self_enhancement"])


def test_each_respondent_is_centred_alone() -> None:
    both = pd.concat([flat(3, power=6), flat(5, hedonism=1)], ignore_index=True)
    scores = schwartz.portrait_scores(both)
    assert scores["power"].tolist() == pytest.approx([2.775, 5 - (37 * 5 + 3) / 40])
    assert scores["hedonism"].tolist() == pytest.approx([-0.225, 1 - (37 * 5 + 3) / 40])


def test_columns_beside_the_items_do_not_enter() -> None:
    ratings = flat(3, power=6).assign(age=44)[["age", *range(40, 0, -1)]]
    pd.testing.assert_frame_equal(schwartz.portrait_scores(ratings), schwartz.portrait_scores(flat(3, power=6)))


def test_a_missing_item_is_named() -> None:
    with pytest.raises(ValueError, match=r"item\(s\) \[7, 31\]"):
        schwartz.portrait_scores(flat(3).drop(columns=[7, 31]))


@pytest.mark.parametrize("rating", [0, 0.99, 6.01, 7, -1])
def test_a_rating_outside_one_to_six_is_refused(rating: float) -> None:
    with pytest.raises(ValueError, match="between 1 and 6"):
        schwartz.portrait_scores(flat(3, power=rating))
