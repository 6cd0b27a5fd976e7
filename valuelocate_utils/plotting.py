"""Figures. A plot function takes an Axes and returns it; saving is in `save` alone.

Colours are Okabe and Ito's, told apart under the common forms of colour blindness: one a dimension, grey for the control.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
        x, y = round(np.cos(ANGLES[dimension])), round(np.sin(ANGLES[dimension]))
        ax.text(ANGLES[dimension], 1.52, SHORT[dimension], ha=("center", "left", "right")[x], va=("center", "bottom", "top")[y],
                fontweight="bold", color=COLOURS[dimension])  # fmt: skip
    ax.set_ylim(0, 1.5)
    ax.set_axis_off()
    return ax


def coverage(ax: Axes, questions: pd.DataFrame) -> Axes:
    """Number of questions in each (value, topic) cell; an empty cell is white."""
    order = [v.key for v in REFINED_VALUES if v.key in set(questions["value"])]
    table = questions.groupby(["value", "topic"]).size().unstack(fill_value=0).reindex(order)
    most = int(table.to_numpy().max())
    palette = ["white", *sns.color_palette("Blues", most)]
    ticks = range(0, most + 1, -(-most // 6))
    sns.heatmap(table, ax=ax, cmap=palette, vmin=-0.5, vmax=most + 0.5, linewidths=0.3, cbar_kws={"label": "questions", "ticks": ticks})
    ax.set_yticks(np.arange(len(table)) + 0.5, [VALUE_LABELS[v] for v in table.index], rotation=0)
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, [t.replace("_", " ") for t in table.columns], rotation=90)
    ax.set(xlabel="", ylabel="")
    return ax


def histograms(ax: Axes, values: pd.Series, dimensions: pd.Series, label: str, step: float) -> Axes:
    """One outline a dimension of a number that each text has, as shares of the dimension's texts, in bins `step` wide."""
    bins = np.arange(np.floor(values.min() / step), np.ceil(values.max() / step) + 1.5) * step - step / 2
    for dimension in (d for d in DIMENSIONS if (dimensions == d).any()):
        own = values[dimensions == dimension]
        ax.hist(own, bins=bins, weights=np.full(len(own), 1 / len(own)), histtype="step", color=COLOURS[dimension], linewidth=1.2)
    ax.set(xlabel=label, ylabel="share of questions")
    return ax


def text_map(ax: Axes, points: np.ndarray, labels: pd.Series, colours: dict[str, Any], title: str) -> Axes:
    """Texts as dots, [text, 2], coloured by label; positions have no unit, so the axes carry no ticks. Labels without a colour are
    drawn first, in grey."""
    named = labels.isin(list(colours)).to_numpy()
    ax.scatter(*points[~named].T, s=2, color="0.85", linewidths=0)
    ax.scatter(*points[named].T, s=3, c=[colours[label] for label in labels[named]], linewidths=0)
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def score_distribution(ax: Axes, scores: pd.DataFrame, threshold: float) -> Axes:
    """Histogram of |delta| by dimension, on a log count axis, with a threshold."""
    bins = np.linspace(0, max(0.05, scores["score"].abs().max()) * 1.02, 40)
    for dimension in (d for d in DIMENSIONS if (scores["dimension"] == d).any()):
        table = scores[scores["dimension"] == dimension]
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
    ax.yaxis.set_major_formatter(lambda y, _: f"{abs(y):g}")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
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
    ticks = np.array((-1, 0, 1)) * float(f"{0.6 * bound:.1g}")
    ax.set(xticks=ticks, yticks=ticks)
    ax.set_title(f"{DIMENSION_LABELS[dimension]}\nr = {halves.corr().iloc[0, 1]:.2f}")
    return ax


def edit_curves(ax: Axes, curves: pd.DataFrame) -> Axes:
    """Activation after an edit against activation before it, [activation before, edit]: one line an edit, blue the deeper the
    stronger; a column called `opposing` is drawn in red, and the unedited neuron is dotted."""
    ax.plot(curves.index, curves.index, color="black", linewidth=0.8, linestyle=":", label="unedited")
    target = [name for name in curves if name != "opposing"]
    for name, colour in zip(target, plt.cm.Blues(np.linspace(0.45, 0.95, len(target)))):
        ax.plot(curves.index, curves[name], color=colour, label=name)
    if "opposing" in curves:
        ax.plot(curves.index, curves["opposing"], color="#B2182B", label="opposing")
    ax.set(xlabel="activation before the edit", ylabel="activation after the edit")
    ax.legend()
    return ax


def tuning_curves(ax: Axes, tuning: pd.DataFrame, dimension: str) -> Axes:
    """Effect in the intended direction on `tune` against gamma, one line a (direction, threshold), paler the lower the
    threshold (labelled, for a shared legend); a ring marks each direction's chosen setting, grey where it is over the budget."""
    rows = tuning.query("dimension == @dimension")
    thresholds = sorted(tuning["threshold"].unique())
    for threshold, alpha in zip(thresholds, np.linspace(0.35, 1, len(thresholds) + 1)[1:]):
        for aspect, marker in zip(ASPECTS, ("^", "v")):
            line = rows.query("aspect == @aspect and threshold == @threshold").sort_values("gamma")
            label = rf"$|\delta| \geq$ {threshold:g}" if aspect == ASPECTS[0] else None
            ax.plot(line["gamma"], line["effect"], marker=marker, color=COLOURS[dimension], alpha=alpha, label=label)
    chosen = rows[rows["chosen"]]
    ax.scatter(chosen["gamma"], chosen["effect"], s=60, facecolors="none", edgecolors=list(np.where(chosen["usable"], "black", CONTROL)), zorder=4)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel=r"$\gamma$", title=DIMENSION_LABELS[dimension])
    ax.grid(axis="y")
    return ax


def direction_handles() -> list[Line2D]:
    """Legend entries that hold for every panel of `dose_response`: the marker says the direction, colour or grey which neurons."""
    def entry(label: str, **style: object) -> Line2D:
        return Line2D([], [], label=label, **{"color": "black", "linestyle": "none"} | style)

    return [
        entry("raised", marker="^"), entry("lowered", marker="v"),
        entry("value neurons (the dimension's colour)", linestyle="-", color=COLOURS["conservation"]), entry("matched random neurons", linestyle="-", color=CONTROL),
    ]  # fmt: skip


def token_trace(ax: Axes, tokens: list[str], values: np.ndarray, prompt: int) -> Axes:
    """Heat map of activations over tokens: red above zero, blue below; the first `prompt` tokens are veiled, as they are not counted.

    Args:
        values: [token, neuron]; one token fewer than `tokens` if the answer's last token, which has no activation, is shown (hatched).
    """
    n = len(tokens)
    norm = TwoSlopeNorm(0, min(float(values.min()), -1e-3), max(float(values.max()), 1e-3))
    image = ax.imshow(values.T, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    ax.axvspan(-0.5, prompt - 0.5, color="0.8", alpha=0.8, linewidth=0)
    ax.axvspan(len(values) - 0.5, n - 0.5, facecolor="none", edgecolor="0.6", hatch="/////", linewidth=0)
    ax.plot([prompt - 0.4, len(values) - 0.6], [1.04, 1.04], transform=ax.get_xaxis_transform(), color="black", linewidth=1.5, clip_on=False)
    for x, text in (((prompt - 1) / 2, "prompt"), ((prompt + len(values) - 1) / 2, "answer tokens that are counted")):
        ax.text(x, 1.07, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=6.5)
    ax.set(xlim=(-0.5, n - 0.5), yticks=[], ylabel="neurons")
    ax.set_xticks(range(n), [token.strip().replace("$", r"\$") or "_" for token in tokens], rotation=90, fontsize=6)
    for label in ax.get_xticklabels()[:prompt]:
        label.set_color("0.5")
    ax.figure.colorbar(image, ax=ax, label="activation", pad=0.01, ticks=[norm.vmin, 0, norm.vmax], format="%.2g")
    return ax


def answer_courses(ax: Axes, shares: pd.DataFrame) -> Axes:
    """Stacked bars of what answers state, one bar a (dimension, aspect); columns are outcomes and add up to 1."""
    y, left = np.arange(len(shares))[::-1], np.zeros(len(shares))
    for outcome, grey in zip(shares.columns, ("0.15", "0.5", "0.75", "0.93")):
        ax.barh(y, shares[outcome], 0.75, left=left, color=grey, edgecolor="white", linewidth=0.5, label=outcome)
        left += shares[outcome].to_numpy()
    ax.set_yticks(y, [f"{DIMENSION_LABELS[d]}, {aspect}" for d, aspect in shares.index])
    for label, (dimension, _) in zip(ax.get_yticklabels(), shares.index):
        label.set_color(COLOURS[dimension])
    ax.set(xlim=(0, 1), xlabel="share of answers")
    ax.legend(ncols=len(shares.columns), loc="lower left", bbox_to_anchor=(0, 1), handlelength=1)
    return ax


def null_counts(ax: Axes, table: pd.DataFrame) -> Axes:
    """Neurons over a threshold beside the mean number when the aspect labels are swapped; columns dimension, observed, null."""
    x = np.arange(len(table))
    ax.bar(x - 0.2, table["observed"], 0.4, color=table["dimension"].map(COLOURS))
    ax.bar(x + 0.2, table["null"], 0.4, color=CONTROL, label="labels swapped at random")
    ax.set_xticks(x, [SHORT[d] for d in table["dimension"]], fontsize=6)
    ax.set(ylabel="neurons over the threshold", ylim=(0, 1.25 * max(1, table[["observed", "null"]].to_numpy().max())))
    ax.legend()
    return ax


def neuron_activations(ax: Axes, plus: np.ndarray, minus: np.ndarray, dimension: str) -> Axes:
    """One neuron's sampled activations [token] under both aspects, with zero and the two 95th percentiles."""
    bins = np.histogram_bin_edges(np.concatenate([plus, minus]), 40)
    for values, colour, aspect, style in ((minus, CONTROL, ASPECTS[1], "--"), (plus, COLOURS[dimension], ASPECTS[0], "-")):
        ax.hist(values, bins=bins, density=True, color=colour, alpha=0.5, label=f"{aspect} description")
        ax.axvline(np.quantile(values, 0.95), color=colour, linestyle=style, linewidth=1)
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="activation (lines: 95th percentiles; dotted: zero)", ylabel="density")
    ax.legend(frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    return ax


def block_shares(ax: Axes, plus: np.ndarray, minus: np.ndarray, dimension: str) -> Axes:
    """One neuron's P(a > 0) in each question block under both aspects, [block]; a line joins a block's two values."""
    x = np.arange(len(plus))
    ax.vlines(x, minus, plus, color="0.8", linewidth=1)
    ax.scatter(x, plus, color=COLOURS[dimension], s=16, label="$P_+$", zorder=3)
    ax.scatter(x, minus, color=CONTROL, s=16, marker="s", label="$P_-$", zorder=3)
    ax.set(xlabel="question block", ylabel="P(a > 0)", ylim=(-0.03, 1.2), xticks=x, yticks=(0, 0.25, 0.5, 0.75, 1))
    ax.legend(ncols=2, loc="upper right")
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


def effect_cost(ax: Axes, tuning: pd.DataFrame, price: str, budget: float) -> Axes:
    """Effect in the intended direction on `tune` against a price, one marker a setting whose cost was measured: filled if chosen
    inside the budget, grey if chosen for want of one inside, hollow if refused. The dotted line is the budget.

    Args:
        price: the column, `perplexity_ratio` or `degenerate`.
    """
    rows = tuning[np.isfinite(tuning[price])]
    for (dimension, aspect), part in rows.groupby(["dimension", "aspect"]):
        face = np.select([part["usable"], part["chosen"]], [COLOURS[dimension], "0.7"], "white")
        ax.scatter(part[price], part["effect"], s=22, marker="^" if aspect == ASPECTS[0] else "v", facecolors=list(face), edgecolors=COLOURS[dimension], zorder=3)
    ax.axvline(budget, color="black", linewidth=0.8, linestyle=":")
    ax.axhline(0, color="black", linewidth=0.6)
    labels = {"perplexity_ratio": "perplexity, edited over unedited", "degenerate": "share of degenerate answers"}
    ax.set(xlabel=labels[price])
    ax.grid(axis="y")
    return ax


def fate_handles() -> list[Line2D]:
    """Legend entries of the fills of `effect_cost`."""
    fills = {"chosen": "black", "refused": "white", "over the budget, taken": "0.7"}
    return [Line2D([], [], linestyle="none", marker="o", markeredgecolor="black", markerfacecolor=fill, label=label) for label, fill in fills.items()]


def dimension_handles() -> list[Line2D]:
    """Legend entries of the four dimensions' colours."""
    return [Line2D([], [], linestyle="none", marker="s", color=COLOURS[d], label=DIMENSION_LABELS[d]) for d in DIMENSIONS]


def effect_heatmap(ax: Axes, matrix: pd.DataFrame, bar: bool = True) -> Axes:
    """The 4 x 4 effect matrix, rows edited, columns measured; `bar` adds the colour scale, which is the same for every matrix."""
    text = matrix.map(lambda x: f"{x:+.2f}" if abs(x) >= 0.005 else "0.00")
    sns.heatmap(matrix, ax=ax, cmap="RdBu_r", center=0, vmin=-0.5, vmax=0.5, annot=text, fmt="", annot_kws={"fontsize": 7}, square=True,
                linewidths=0.5, cbar=bar, cbar_kws={"label": "change of preference", "shrink": 0.8})  # fmt: skip
    labels = [SHORT[d] for d in DIMENSIONS]
    ax.set_xticks(np.arange(4) + 0.5, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=6)
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
    left, right = table[["low", "random_low"]].min(axis=None), table[["high", "random_high"]].max(axis=None)
    ax.set(xlabel="change of preference in the intended direction", xlim=(min(-0.12, left - 0.03), max(0.55, right + 0.03)))
    ax.grid(axis="x")
    handles = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2).legend_handles
    handles[0].set_color("black")
    return ax


def learning_curve(ax: Axes, curve: pd.DataFrame, floor: float) -> Axes:
    """Loss on answer tokens (nats) against the share of training done, log scale, with its floor dotted."""
    ax.plot(curve["share"], curve["loss"], color="black", marker="o")
    ax.axhline(floor, color=CONTROL, linestyle=":")
    ax.set(yscale="log", xlabel="share of training", ylabel="loss, nats a token")
    ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    ax.minorticks_off()
    return ax


def trial_bars(ax: Axes, trials: pd.DataFrame, columns: dict[str, str], title: str) -> Axes:
    """One row of bars a trial (recipe and seed), a bar for each column in its colour."""
    y, height = np.arange(len(trials))[::-1], 0.8 / len(columns)
    for i, (column, colour) in enumerate(columns.items()):
        ax.barh(y - (i - (len(columns) - 1) / 2) * height, trials[column], height, color=colour)
    ax.set_yticks(y, trials["recipe"].str.replace("_", " ") + ", seed " + trials["seed"].astype(str))
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_title(title)
    return ax
