"""Scores of neurons and selections among them. Scoring and selecting are separate steps.

A score is signed: above zero, the neuron belongs to the positive aspect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from .schwartz import ASPECTS
from .significance import q_values, share_difference_p_values


def _stack(shards: Sequence[dict[str, torch.Tensor]], name: str) -> np.ndarray:
    return np.stack([s[name].flatten().double().numpy() for s in shards])


def active_share(shards: Sequence[dict[str, torch.Tensor]]) -> np.ndarray:
    """P(a > 0) over all response tokens of some shards, [layer * neuron]."""
    return _stack(shards, "n_positive").sum(0) / _stack(shards, "n_tokens").sum()


def percentile95(shards: Sequence[dict[str, torch.Tensor]]) -> np.ndarray:
    """95th percentile of each neuron's activation over the shards' sampled response tokens, [layer * neuron]."""
    sample = torch.cat([s["sample"] for s in shards]).flatten(1).double()
    return torch.quantile(sample, 0.95, dim=0).numpy()


def probability_difference(
    plus: Sequence[dict[str, torch.Tensor]], minus: Sequence[dict[str, torch.Tensor]], permutations: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """The paper's statistic delta = P+(a > 0) - P-(a > 0), with a permutation p-value (Su et al. 2025, section 3.2).

    Args:
        plus, minus: shards of the positive and of the negative aspect, over the same questions in the same blocks.

    Returns:
        One row a neuron: layer, neuron, score, p_plus, p_minus, a95_plus, a95_minus, p_value, q_value. The p-value swaps the
        aspects within question blocks, which the paper does not; the q-value is Benjamini-Hochberg's over all neurons.
    """
    if len(plus) != len(minus):
        raise ValueError(f"{len(plus)} positive but {len(minus)} negative shards: the aspects must share their question blocks")
    layers, width = plus[0]["n_positive"].shape
    p_plus, p_minus = active_share(plus), active_share(minus)
    p_value = share_difference_p_values(
        _stack(plus, "n_positive"), _stack(plus, "n_tokens")[:, 0], _stack(minus, "n_positive"), _stack(minus, "n_tokens")[:, 0], permutations, seed
    )
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), width), "neuron": np.tile(np.arange(width), layers), "score": p_plus - p_minus,
            "p_plus": p_plus, "p_minus": p_minus, "a95_plus": percentile95(plus), "a95_minus": percentile95(minus),
            "p_value": p_value, "q_value": q_values(p_value),
        }
    )  # fmt: skip


def passes(score: np.ndarray | pd.Series, threshold: float) -> np.ndarray | pd.Series:
    """|score| >= threshold, where a difference of two shares that equals the threshold but for rounding counts as equal."""
    return np.abs(score) >= threshold - 1e-12


def select(scores: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Neurons with |score| >= threshold, as rows of the `neurons` table: the sign says the aspect, a95 is that aspect's."""
    kept = scores[passes(scores["score"], threshold)]
    positive = (kept["score"] > 0).to_numpy()
    return pd.DataFrame(
        {
            "dimension": kept["dimension"], "aspect": np.where(positive, *ASPECTS), "method": kept["method"], "layer": kept["layer"],
            "neuron": kept["neuron"], "score": kept["score"], "a95": np.where(positive, kept["a95_plus"], kept["a95_minus"]),
        }
    ).reset_index(drop=True)  # fmt: skip


def null_count(plus: Sequence[dict], minus: Sequence[dict], threshold: float, shuffles: int, seed: int) -> float:
    """Mean number of neurons with |delta| >= threshold when the aspect labels are swapped at random within blocks."""
    rng, counts = np.random.default_rng(seed), []
    for _ in range(shuffles):
        swap = rng.random(len(plus)) < 0.5
        a = [m if s else p for p, m, s in zip(plus, minus, swap)]
        b = [p if s else m for p, m, s in zip(plus, minus, swap)]
        counts.append(int(passes(active_share(a) - active_share(b), threshold).sum()))
    return float(np.mean(counts))


def split_half(plus: Sequence[dict], minus: Sequence[dict]) -> pd.DataFrame:
    """delta from even and from odd shards, [neuron, (even, odd)]: two estimates that share no question."""
    return pd.DataFrame({name: active_share(plus[i::2]) - active_share(minus[i::2]) for i, name in enumerate(("even", "odd"))})


def jaccard(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """Overlap of two neuron sets by (layer, neuron): size of the intersection over size of the union; 0 if both are empty."""
    one, two = (set(zip(t["layer"], t["neuron"])) for t in (a, b))
    return len(one & two) / len(one | two) if one | two else 0.0
