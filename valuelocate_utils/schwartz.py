"""Schwartz's theory of basic human values: dimensions, refined values, circle and portrait scoring.

Sources: Schwartz (1992), Advances in Experimental Social Psychology 25, for the circle; Schwartz et al. (2012),
JPSP 103(4), for the 19 refined values; the PVQ40 key as published with the questionnaire. Item texts are not shipped.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

Dimension = Literal["openness_to_change", "self_transcendence", "conservation", "self_enhancement"]
Aspect = Literal["positive", "negative"]

DIMENSIONS: tuple[str, ...] = get_args(Dimension)
ASPECTS: tuple[str, ...] = get_args(Aspect)

DIMENSION_LABELS: dict[str, str] = {
    "openness_to_change": "Openness to Change",
    "self_transcendence": "Self-Transcendence",
    "conservation": "Conservation",
    "self_enhancement": "Self-Enhancement",
}

OPPOSITE: dict[str, str] = {
    "openness_to_change": "conservation",
    "conservation": "openness_to_change",
    "self_enhancement": "self_transcendence",
    "self_transcendence": "self_enhancement",
}

# Going round the circle the higher-order values alternate: Openness to Change, Self-Enhancement, Conservation,
# Self-Transcendence. Two bipolar axes at right angles put their centres a quarter turn apart.
ANGLES: dict[str, float] = {
    "openness_to_change": 0.0,
    "self_enhancement": math.pi / 2,
    "conservation": math.pi,
    "self_transcendence": 3 * math.pi / 2,
}


class Value(NamedTuple):
    """One of the 19 refined values: its key, a reader's label, its higher-order dimension (None: a border value), its goal."""

    key: str
    label: str
    dimension: str | None
    goal: str


REFINED_VALUES: tuple[Value, ...] = (
    Value("self_direction_thought", "Self-Direction: Thought", "openness_to_change", "freedom to form one's own ideas and abilities"),
    Value("self_direction_action", "Self-Direction: Action", "openness_to_change", "freedom to decide one's own acts"),
    Value("stimulation", "Stimulation", "openness_to_change", "excitement, novelty and challenge"),
    Value("hedonism", "Hedonism", "openness_to_change", "pleasure and the joys of the senses"),
    Value("achievement", "Achievement", "self_enhancement", "success by the standards of one's society"),
    Value("power_dominance", "Power: Dominance", "self_enhancement", "influence through command over people"),
    Value("power_resources", "Power: Resources", "self_enhancement", "influence through money and other means"),
    Value("face", "Face", None, "a good name, and no humiliation"),
    Value("security_personal", "Security: Personal", "conservation", "safety in one's own surroundings"),
    Value("security_societal", "Security: Societal", "conservation", "a stable and safe society"),
    Value("tradition", "Tradition", "conservation", "keeping what family, culture or faith has handed down"),
    Value("conformity_rules", "Conformity: Rules", "conservation", "obedience to rules, laws and formal duties"),
    Value("conformity_interpersonal", "Conformity: Interpersonal", "conservation", "giving others no cause for upset or harm"),
    Value("humility", "Humility", None, "knowing how small one is in the whole"),
    Value("benevolence_dependability", "Benevolence: Dependability", "self_transcendence", "being one on whom one's own people can rely"),
    Value("benevolence_caring", "Benevolence: Caring", "self_transcendence", "the welfare of one's own people"),
    Value("universalism_concern", "Universalism: Concern", "self_transcendence", "equal chances, justice and protection for all"),
    Value("universalism_nature", "Universalism: Nature", "self_transcendence", "the care of nature"),
    Value("universalism_tolerance", "Universalism: Tolerance", "self_transcendence", "understanding of those who are different"),
)

VALUES_OF: dict[str, tuple[str, ...]] = {
    d: tuple(v.key for v in REFINED_VALUES if v.dimension == d) for d in DIMENSIONS
}

# The ten basic values in circle order, with the dimension whose higher-order score they enter.
BASIC_VALUES: dict[str, str] = {
    "self_direction": "openness_to_change",
    "stimulation": "openness_to_change",
    "hedonism": "openness_to_change",
    "achievement": "self_enhancement",
    "power": "self_enhancement",
    "security": "conservation",
    "conformity": "conservation",
    "tradition": "conservation",
    "benevolence": "self_transcendence",
    "universalism": "self_transcendence",
}

PVQ40_KEY: dict[str, tuple[int, ...]] = {
    "conformity": (7, 16, 28, 36),
    "tradition": (9, 20, 25, 38),
    "benevolence": (12, 18, 27, 33),
    "universalism": (3, 8, 19, 23, 29, 40),
    "self_direction": (1, 11, 22, 34),
    "stimulation": (6, 15, 30),
    "hedonism": (10, 26, 37),
    "achievement": (4, 13, 24, 32),
    "power": (2, 17, 39),
    "security": (5, 14, 21, 31, 35),
}


def check_dimension(name: str) -> str:
    """Return `name` if it is one of the four dimension keys; otherwise raise ValueError naming the four."""
    if name not in DIMENSIONS:
        raise ValueError(f"unknown dimension {name!r}: choose one of {', '.join(DIMENSIONS)}")
    return name


def cosine(a: str, b: str) -> float:
    """Cosine of the angle between two dimensions on the circle: 1 the same, 0 adjacent, -1 opposite."""
    return round(math.cos(ANGLES[check_dimension(a)] - ANGLES[check_dimension(b)]), 12) + 0.0


def cosine_matrix() -> pd.DataFrame:
    """The 4 x 4 matrix of `cosine`, rows and columns in the order of DIMENSIONS."""
    return pd.DataFrame([[cosine(a, b) for b in DIMENSIONS] for a in DIMENSIONS], index=DIMENSIONS, columns=DIMENSIONS)


def portrait_scores(ratings: pd.DataFrame, key: dict[str, tuple[int, ...]] = PVQ40_KEY) -> pd.DataFrame:
    """Centred scores of a portrait questionnaire, one row a respondent.

    Args:
        ratings: [respondent, item], columns are the item numbers of `key`, cells 1-6; NaN is a missing answer.
        key: value -> its item numbers.

    Returns:
        [respondent, value + dimension]: each value's item mean minus the respondent's mean over ALL items (MRAT),
        then the four higher-order scores, each the mean of its centred value scores (not of items). Never divided by
        a standard deviation (Schwartz's scoring instructions).

    Raises:
        ValueError: an item of the key has no column, or a rating lies outside 1-6.
    """
    items = sorted(i for members in key.values() for i in members)
    if missing := [i for i in items if i not in ratings.columns]:
        raise ValueError(f"portrait ratings lack item(s) {missing}: the key needs one column for each of {len(items)} items")
    cells = ratings[items].astype(float)
    if ((cells < 1) | (cells > 6)).any(axis=None):
        raise ValueError("portrait ratings must lie between 1 and 6 (leave a missing answer empty)")
    mrat = cells.mean(axis=1)
    scores = pd.DataFrame({value: cells[list(members)].mean(axis=1) - mrat for value, members in key.items()})
    for dimension in DIMENSIONS:
        members = [v for v in key if BASIC_VALUES[v] == dimension]
        scores[dimension] = scores[members].mean(axis=1) if members else np.nan
    return scores
