"""Figures. A plot function takes an Axes and returns it; saving is in `save` alone.

Colours are Okabe and Ito's, told apart under the common forms of colour blindness: one a dimension, grey for the control.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .schwartz import ANGLES, ASPECTS, BASIC_VALUES, DIMENSION_LABELS, DIMENSIONS, REFINED_VALUES

COLOURS: dict[str, str] = {
    "openness_to_change": "#E69F00",
    "self_transcendence": "#009E73",
    "conservation": "#0072B2",
    "self_enhancement": "#D55E00",
}
CONTROL = "#8C8C8C"
SHORT: dict[str, str] = {
    "openness_to_change": "Openness\nto Change",
    "self_transcendence": "Self-\nTranscendence",
    "conservation": "Conservation",
    "self_enhancement": "Self-\nEnhancement",
}
VALUE_LABELS: dict[str, str] = {v.key: v.label for v in REFINED_VALUES}


def use_style() -> None:
    """Apply the suite's style file."""
    plt.style.use(Path(__file__).with_name("paper.mplstyle"))


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF and PNG, without dates, so that equal figures are equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    figure.savefig(paths[0], metadata={"CreationDate": None})
    figure.savefig(paths[1], metadata={"Software": None})
    return paths


def circle(ax: Axes) -> Axes:
    """The Schwartz circle on a polar Axes: ten basic values in order, coloured by higher-order dimension."""
    quarter = np.pi / 2
    for dimension in DIMENSIONS:
        members = [v for v, d in BASIC_VALUES.items() if d == dimension]
        width = quarter / len(members)
        for i, value in enumerate(members):
            middle = ANGLES[dimension] - quarter / 2 + (i + 0.5) * width
            ax.bar(middle, 1.0, width=width, bottom=0.45, color=COLOURS[dimension], alpha=0.35, edgecolor="white", linewidth=1.5)
            turn = np.degrees(middle)
            ax.text(middle, 0.95, value.replace("_", "-"), ha="center", va="center", fontsize=6.5,
                    rotation=turn + (180 if 90 < turn % 360 < 270 else 0), rotation_mode="anchor")  # fmt: skip
        ax.text(ANGLES[dimension], 1.92, SHORT[dimension], ha="center", va="center", fontweight="bold", color=COLOURS[dimension])
    ax.set_ylim(0, 2.1)
    ax.set_axis_off()
    return ax


def coverage(ax: Axes, questions: pd.DataFrame) -> Axes:
    """Number of questions in each (value, topic) cell."""
    order = [v.key for v in REFINED_VALUES if v.key in set(questions["value"])]
    table = questions.groupby(["value", "topic"]).size().unstack(fill_value=0).reindex(order)
    sns.heatmap(table, ax=ax, cmap="Blues", vmin=0, linewidths=0.3, cbar_kws={"label": "questions", "shrink": 0.8})
    ax.set_yticks(np.arange(len(table)) + 0.5, [VALUE_LABELS[v] for v in table.index], rotation=0)
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, [t.replace("_", " ") for t in table.columns], rotation=60, ha="right")
    ax.set(xlabel="", ylabel="")
    return ax


def score_distribution(ax: Axes, scores: pd.DataFrame, threshold: float) -> Axes:
    """Histogram of |delta| by dimension, on a log count axis, with a threshold."""
    bins = np.linspace(0, max(0.05, scores["score"].abs().max()) * 1.02, 40)
    for dimension, table in scores.groupby("dimension"):
        ax.hist(table["score"].abs(), bins=bins, histtype="step", color=COLOURS[dimension], label=DIMENSION_LABELS[dimension], linewidth=1.2)
    ax.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
    ax.set(yscale="log", xlabel=r"$|\delta| = |P_+(a>0) - P_-(a>0)|$", ylabel="neurons")
    ax.legend()
    return ax


def layer_profile(ax: Axes, neurons: pd.DataFrame, layers: int, width: int) -> Axes:
    """Share of each layer's neurons that are selected, positive upwards and negative downwards, by dimension."""
    bar = 0.8 / len(DIMENSIONS)
    for i, dimension in enumerate(DIMENSIONS):
        for aspect, sign in zip(ASPECTS, (1, -1)):
            found = neurons.query("dimension == @dimension and aspect == @aspect")["layer"].value_counts().reindex(range(layers), fill_value=0)
            ax.bar(np.arange(layers) + (i - 1.5) * bar, 100 * sign * found / width, bar, color=COLOURS[dimension], alpha=1.0 if sign > 0 else 0.5,
                   label=DIMENSION_LABELS[dimension] if sign > 0 else None)  # fmt: skip
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="layer", ylabel="% of the layer's neurons\nnegative   |   positive")
    ax.set_xticks(range(layers))
    ax.legend(ncols=2)
    return ax


def overlap(ax: Axes, table: pd.DataFrame) -> Axes:
    """Heat map of a square overlap table with values in [0, 1]; `dimension aspect` labels as given."""
    sns.heatmap(table, ax=ax, cmap="Greys", vmin=0, vmax=1, annot=True, fmt=".2f", annot_kws={"fontsize": 6}, cbar=False, square=True, linewidths=0.3)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=45)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    return ax


def split_half(ax: Axes, halves: pd.DataFrame, dimension: str) -> Axes:
    """delta from even against odd shards, one dot a neuron."""
    bound = float(halves.abs().to_numpy().max()) * 1.05
    ax.plot([-bound, bound], [-bound, bound], color="black", linewidth=0.6)
    ax.scatter(halves["even"], halves["odd"], s=3, alpha=0.35, color=COLOURS[dimension], linewidths=0, rasterized=True)
    ax.set(xlim=(-bound, bound), ylim=(-bound, bound), xlabel=r"$\delta$, even shards", ylabel=r"$\delta$, odd shards", aspect="equal")
    ax.set_title(f"{DIMENSION_LABELS[dimension]}, r = {halves.corr().iloc[0, 1]:.2f}")
    return ax


def dose_response(ax: Axes, effects: pd.DataFrame, dimension: str) -> Axes:
    """Change of preference against gamma, both directions, located neurons in colour, matched random control in grey."""
    rows = effects.query("edited_dimension == @dimension and measured_dimension == @dimension and intervention == 'amplify' and outcome == 'forced_choice'")
    for control, colour in (("random", CONTROL), ("none", COLOURS[dimension])):
        for aspect, marker in zip(ASPECTS, ("^", "v")):
            line = rows.query("control == @control and aspect == @aspect").sort_values("gamma")
            ax.plot(line["gamma"], line["mean"], marker=marker, color=colour)
            ax.fill_between(line["gamma"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel=r"$\gamma$", ylim=(-0.62, 0.62), title=DIMENSION_LABELS[dimension])
    ax.grid(axis="y")
    return ax


def effect_heatmap(ax: Axes, matrix: pd.DataFrame) -> Axes:
    """The 4 x 4 effect matrix, rows edited, columns measured."""
    sns.heatmap(matrix, ax=ax, cmap="RdBu_r", center=0, vmin=-0.5, vmax=0.5, annot=True, fmt="+.2f", annot_kws={"fontsize": 7}, square=True,
                linewidths=0.5, cbar_kws={"label": "change of preference", "shrink": 0.8})  # fmt: skip
    labels = [SHORT[d] for d in DIMENSIONS]
    ax.set_xticks(np.arange(4) + 0.5, labels, rotation=0, fontsize=6)
    ax.set_yticks(np.arange(4) + 0.5, labels, rotation=0, fontsize=6)
    ax.set(xlabel="measured", ylabel="edited")
    return ax


def headline(ax: Axes, table: pd.DataFrame) -> Axes:
    """The main result: one line a (dimension, direction), effect and matched random control with 95% intervals."""
    y = np.arange(len(table))[::-1]
    for shift, names, colours, label in (
        (0.14, ("effect", "low", "high"), table["dimension"].map(COLOURS), "value neurons"),
        (-0.14, ("random", "random_low", "random_high"), [CONTROL] * len(table), "matched random neurons"),
    ):
        mean, low, high = (table[n].to_numpy() for n in names)
        ax.hlines(y + shift, low, high, colors=list(colours), linewidth=2)
        ax.scatter(mean, y + shift, color=list(colours), s=16, zorder=3, marker="o" if shift > 0 else "s", label=label)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(y, [f"{DIMENSION_LABELS[d]}, {'raised' if a == 'positive' else 'lowered'}" for d, a in zip(table["dimension"], table["aspect"])])
    ax.set(xlabel="change of preference in the intended direction", xlim=(-0.12, max(0.55, table["high"].max() + 0.03)))
    ax.grid(axis="x")
    handles = ax.legend(loc="lower right").legend_handles
    handles[0].set_color("black")
    return ax
