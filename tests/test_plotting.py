"""plotting: each figure draws what its table says; saving is byte-stable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb

from valuelocate_utils import plotting
from valuelocate_utils.schwartz import ASPECTS, BASIC_VALUES, DIMENSION_LABELS, DIMENSIONS

OWN, OTHER = DIMENSIONS[:2]


@pytest.fixture
def ax() -> Iterator[Axes]:
    with plt.style.context("default"):
        plotting.use_style()
        figure, made = plt.subplots()
        yield made
        figure.canvas.draw()  # a figure that cannot be drawn fails here
        plt.close(figure)


def of_type(ax: Axes, kind: type) -> list:
    return [c for c in ax.collections if isinstance(c, kind)]


def test_each_dimension_has_a_colour_of_its_own_and_the_control_another() -> None:
    assert set(plotting.COLOURS) == set(plotting.SHORT) == set(DIMENSIONS)
    assert len({plotting.CONTROL, *plotting.COLOURS.values()}) == 5


# ----------------------------------------------------------------------------------------------------------------- dataset
def test_circle_gives_each_dimension_a_quarter_divided_among_its_values() -> None:
    figure, polar = plt.subplots(subplot_kw={"projection": "polar"})
    assert plotting.circle(polar) is polar
    widths = {d: [round(p.get_width(), 9) for p in polar.patches if to_hex(p.get_facecolor()).upper() == plotting.COLOURS[d]] for d in DIMENSIONS}
    for d in DIMENSIONS:
        members = [v for v, of in BASIC_VALUES.items() if of == d]
        assert widths[d] == [round(np.pi / 2 / len(members), 9)] * len(members)
    assert len(polar.patches) == len(BASIC_VALUES)
    shown = {t.get_text() for t in polar.texts}
    assert shown == {v.replace("_", "-") for v in BASIC_VALUES} | set(plotting.SHORT.values())
    edges = sorted((p.get_x() % (2 * np.pi), p.get_width()) for p in polar.patches)
    assert all(a + w == pytest.approx(b) for (a, w), (b, _) in zip(edges, edges[1:]))  # no gap, no overlap
    plt.close(figure)


def test_coverage_counts_questions_in_circle_order(ax: Axes) -> None:
    questions = pd.DataFrame({"value": ["tradition", "stimulation", "tradition", "tradition"], "topic": ["work", "work", "food", "food"]})
    assert plotting.coverage(ax, questions) is ax
    (mesh,) = of_type(ax, QuadMesh)
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(2, 2), [[0, 1], [2, 1]])  # columns food, work
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Stimulation", "Tradition"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["food", "work"]


def test_coverage_of_full_cells_has_few_ticks(ax: Axes) -> None:
    plotting.coverage(ax, pd.DataFrame({"value": ["tradition"] * 45, "topic": ["work"] * 45}))
    bar = ax.figure.axes[-1]
    assert list(bar.get_yticks()) == [0, 8, 16, 24, 32, 40]


def test_histograms_are_shares_of_each_dimension(ax: Axes) -> None:
    values = pd.Series([40, 40, 43, 52, 40, 61])
    dimensions = pd.Series([OWN] * 4 + [OTHER] * 2)
    assert plotting.histograms(ax, values, dimensions, "words", 3) is ax
    outlines = {to_hex(p.get_edgecolor()).upper(): p.get_xy() for p in ax.patches}
    heights = {colour: sorted(set(xy[:, 1].round(6))) for colour, xy in outlines.items()}
    assert heights == {plotting.COLOURS[OWN]: [0, 0.25, 0.5], plotting.COLOURS[OTHER]: [0, 0.5]}
    xs = outlines[plotting.COLOURS[OTHER]][:, 0]
    assert xs.min() <= 40 and xs.max() >= 61  # no value falls outside


def test_text_map_colours_what_is_named_and_greys_the_rest(ax: Axes) -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    assert plotting.text_map(ax, points, pd.Series(["food", "work", "food"]), {"food": "#112233"}, "topics") is ax
    rest, named = ax.collections
    np.testing.assert_array_equal(rest.get_offsets(), points[[1]])
    np.testing.assert_array_equal(named.get_offsets(), points[[0, 2]])
    assert {to_hex(c) for c in named.get_facecolors()} == {"#112233"} and ax.get_title(loc="left") == "topics"


# ----------------------------------------------------------------------------------------------------------------- neurons
def test_score_distribution_counts_every_neuron_by_size(ax: Axes) -> None:
    scores = pd.DataFrame({"dimension": [OWN] * 5 + [OTHER] * 2, "score": [0.4, -0.4, 0.01, -0.02, 0.2, 0.1, -0.1]})
    assert plotting.score_distribution(ax, scores, 0.15) is ax
    totals = {to_hex(p.get_edgecolor()).upper(): p.get_xy()[:, 1].max() for p in ax.patches}
    assert totals == {plotting.COLOURS[OWN]: 2, plotting.COLOURS[OTHER]: 2}
    assert ax.get_yscale() == "log" and set(ax.lines[0].get_xdata()) == {0.15}
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {DIMENSION_LABELS[OWN], DIMENSION_LABELS[OTHER]}


def test_layer_profile_bars_are_percentages_up_and_down(ax: Axes) -> None:
    neurons = pd.DataFrame({"dimension": [OWN] * 4 + [OTHER], "aspect": ["positive", "positive", "negative", "positive", "negative"], "layer": [0, 0, 0, 2, 1]})
    assert plotting.layer_profile(ax, neurons, layers=3, width=50) is ax
    assert len(ax.patches) == len(DIMENSIONS) * len(ASPECTS) * 3
    heights = {(d, s): [] for d in DIMENSIONS for s in (1, -1)}
    for n, bar in enumerate(ax.patches):
        heights[DIMENSIONS[n // 6], 1 if n % 6 < 3 else -1].append(bar.get_height())
    assert heights[OWN, 1] == [4, 0, 2] and heights[OWN, -1] == [-2, 0, 0]
    assert heights[OTHER, 1] == [0, 0, 0] and heights[OTHER, -1] == [0, -2, 0]
    assert to_hex(ax.patches[6].get_facecolor()).upper() == plotting.COLOURS[OTHER]
    ax.figure.canvas.draw()
    assert not [t for t in ax.get_yticklabels() if t.get_text().startswith(("-", "\u2212"))]
    assert [round(ax.patches[6 * i].get_x() + ax.patches[6 * i].get_width() / 2, 6) for i in range(4)] == [-0.3, -0.1, 0.1, 0.3]


def test_overlap_shows_the_table(ax: Axes) -> None:
    table = pd.DataFrame([[1.0, 0.25], [0.25, 1.0]], index=["a", "b"], columns=["a", "b"])
    assert plotting.overlap(ax, table) is ax
    (mesh,) = of_type(ax, QuadMesh)
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(2, 2), table)
    assert mesh.get_clim() == (0, 1) and [t.get_text() for t in ax.texts] == ["1.00", "0.25", "0.25", "1.00"]


def test_split_half_draws_one_dot_a_neuron_and_states_r(ax: Axes) -> None:
    halves = pd.DataFrame({"even": [0.1, -0.2, 0.3], "odd": [0.2, -0.1, 0.1]})
    assert plotting.split_half(ax, halves, OWN) is ax
    (dots,) = of_type(ax, PathCollection)
    np.testing.assert_array_equal(dots.get_offsets(), halves)
    assert ax.get_title(loc="left").endswith(f"r = {np.corrcoef(halves['even'], halves['odd'])[0, 1]:.2f}")
    assert ax.get_xlim() == ax.get_ylim() == pytest.approx((-0.315, 0.315))


# ------------------------------------------------------------------------------------------------------------------- edits
def test_edit_curves_draw_the_identity_and_every_column(ax: Axes) -> None:
    curves = pd.DataFrame({"weak": [0.0, 1.0], "strong": [1.0, 2.0], "opposing": [-1.0, 0.0]}, index=[-1.0, 0.0])
    assert plotting.edit_curves(ax, curves) is ax
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["unedited", "weak", "strong", "opposing"]
    assert lines["unedited"].get_xydata().tolist() == [[-1, -1], [0, 0]]
    for name in curves:
        assert lines[name].get_xydata().tolist() == [[-1, curves[name].iloc[0]], [0, curves[name].iloc[1]]]
    assert sum(to_rgb(lines["weak"].get_color())) > sum(to_rgb(lines["strong"].get_color()))  # the deeper the stronger


def tuning_table() -> pd.DataFrame:
    rows = [
        {"dimension": d, "aspect": a, "threshold": t, "gamma": g, "effect": n * 0.01 + g * 0.1 + t, "usable": a == "positive", "chosen": t == 0.3 and g == 2.0}
        for n, (d, a, t, g) in enumerate((d, a, t, g) for d in (OWN, OTHER) for a in ASPECTS for t in (0.1, 0.3) for g in (2.0, 1.0))
    ]
    return pd.DataFrame(rows)


def test_tuning_curves_draw_one_line_a_direction_and_threshold(ax: Axes) -> None:
    table = tuning_table()
    assert plotting.tuning_curves(ax, table, OTHER) is ax
    lines = [line for line in ax.lines if len(set(line.get_ydata())) > 1]
    drawn = {(line.get_marker(), line.get_alpha()): line.get_xydata().tolist() for line in lines}
    assert len(drawn) == 4
    for (marker, alpha), points in drawn.items():
        aspect = "positive" if marker == "^" else "negative"
        rows = table.query("dimension == @OTHER and aspect == @aspect and threshold == @t", local_dict={"OTHER": OTHER, "aspect": aspect, "t": 0.3 if alpha == 1 else 0.1})
        assert points == rows.sort_values("gamma")[["gamma", "effect"]].to_numpy().tolist()
    (rings,) = of_type(ax, PathCollection)
    expected = table.query("dimension == @OTHER and chosen", local_dict={"OTHER": OTHER})
    np.testing.assert_allclose(rings.get_offsets(), expected[["gamma", "effect"]])
    assert [to_hex(c).upper() for c in rings.get_edgecolors()] == ["#000000", plotting.CONTROL]


def test_tuning_curves_of_a_dimension_without_settings_are_empty(ax: Axes) -> None:
    plotting.tuning_curves(ax, tuning_table(), DIMENSIONS[2])
    assert all(len(line.get_xdata()) == 0 for line in ax.lines[:-1]) and ax.get_title(loc="left") == DIMENSION_LABELS[DIMENSIONS[2]]


def test_direction_handles_tell_marker_and_colour() -> None:
    handles = plotting.direction_handles()
    assert [h.get_label() for h in handles][:2] == ["raised", "lowered"] and [h.get_marker() for h in handles][:2] == ["^", "v"]
    assert handles[3].get_color() == plotting.CONTROL and "random" in handles[3].get_label()


def effects_table() -> pd.DataFrame:
    keys = {"method": "m", "intervention": "amplify", "measured_dimension": OWN, "outcome": "forced_choice", "edited_dimension": OWN}
    rows = []
    for control, size in (("none", 1.0), ("random", 0.1)):
        for aspect, sign in zip(ASPECTS, (1, -1)):
            for gamma in (2.0, 0.5, 1.0):
                mean = sign * size * gamma / 10
                rows.append(keys | {"control": control, "aspect": aspect, "gamma": gamma, "mean": mean, "low": mean - 0.02, "high": mean + 0.03})
    noise = [{"intervention": "ablate", "gamma": 0.0}, {"outcome": "perplexity"}, {"measured_dimension": OTHER}, {"edited_dimension": OTHER}]
    return pd.DataFrame(rows + [rows[0] | {"mean": 0.6, "low": 0.6, "high": 0.6} | n for n in noise])


def test_dose_response_draws_four_lines_with_their_intervals(ax: Axes) -> None:
    table = effects_table()
    assert plotting.dose_response(ax, table, OWN) is ax
    drawn = {(line.get_color(), line.get_marker()): line.get_xydata().tolist() for line in ax.lines[:4]}
    for colour, control in ((plotting.COLOURS[OWN], "none"), (plotting.CONTROL, "random")):
        for marker, aspect in (("^", "positive"), ("v", "negative")):
            rows = table.iloc[:12].query("control == @control and aspect == @aspect", local_dict={"control": control, "aspect": aspect}).sort_values("gamma")
            assert drawn[colour, marker] == rows[["gamma", "mean"]].to_numpy().tolist()
    bands = of_type(ax, FillBetweenPolyCollection)
    spans = sorted((round(b.get_paths()[0].vertices[:, 1].min(), 9), round(b.get_paths()[0].vertices[:, 1].max(), 9)) for b in bands)
    first = table.iloc[:12].groupby(["control", "aspect"]).agg(low=("low", "min"), high=("high", "max")).round(9)
    assert spans == sorted(map(tuple, first.to_numpy().tolist()))


def test_effect_heatmap_shows_rows_edited_and_columns_measured(ax: Axes) -> None:
    matrix = pd.DataFrame(np.arange(16).reshape(4, 4) / 40, index=DIMENSIONS, columns=DIMENSIONS)
    matrix.iloc[0, 0] = -0.001  # nothing is printed as -0.00
    assert plotting.effect_heatmap(ax, matrix) is ax
    (mesh,) = of_type(ax, QuadMesh)
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(4, 4), matrix)
    low, high = mesh.get_clim()
    assert low == -high  # zero is white
    assert [ax.texts[i].get_text() for i in (0, 4, 10)] == ["0.00", "+0.10", "+0.25"]
    assert [t.get_text() for t in ax.get_yticklabels()] == [plotting.SHORT[d] for d in DIMENSIONS]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured", "edited")


def test_headline_draws_effect_and_control_of_every_row(ax: Axes) -> None:
    table = pd.DataFrame({
        "dimension": [OWN, OWN, OTHER], "aspect": ["positive", "negative", "positive"], "effect": [0.3, 0.2, 0.6], "low": [0.2, 0.1, 0.5], "high": [0.4, 0.3, 0.7],
        "random": [0.0, -0.01, 0.02], "random_low": [-0.05, -0.04, 0.0], "random_high": [0.05, 0.02, 0.04],
    })  # fmt: skip
    assert plotting.headline(ax, table) is ax
    located, control = of_type(ax, PathCollection)
    np.testing.assert_allclose(located.get_offsets()[:, 0], table["effect"])
    np.testing.assert_allclose(control.get_offsets()[:, 0], table["random"])
    assert list(located.get_offsets()[:, 1]) == sorted(located.get_offsets()[:, 1], reverse=True)  # the table's first row on top
    bars, grey = of_type(ax, LineCollection)
    np.testing.assert_allclose([s[:, 0] for s in bars.get_segments()], table[["low", "high"]])
    np.testing.assert_allclose([s[:, 0] for s in grey.get_segments()], table[["random_low", "random_high"]])
    assert [to_hex(c).upper() for c in bars.get_colors()] == [plotting.COLOURS[d] for d in table["dimension"]]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == [f"{DIMENSION_LABELS[OWN]}, raised", f"{DIMENSION_LABELS[OWN]}, lowered", f"{DIMENSION_LABELS[OTHER]}, raised"]
    assert ax.get_xlim()[1] > 0.7


# ------------------------------------------------------------------------------------------------------------------ saving
def test_save_gives_equal_bytes_twice(tmp_path: Path) -> None:
    def made(folder: Path) -> list[Path]:
        plotting.use_style()
        figure, ax = plt.subplots(figsize=(2, 2))
        plotting.split_half(ax, pd.DataFrame({"even": [0.1, -0.2], "odd": [0.2, -0.1]}), OWN)
        paths = plotting.save(figure, folder / "deeper", "halves")
        plt.close(figure)
        return paths

    with plt.style.context("default"):
        first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert [p.name for p in first] == ["halves.pdf", "halves.png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[0].read_bytes().startswith(b"%PDF") and b"CreationDate" not in first[0].read_bytes() and first[1].read_bytes().startswith(b"\x89PNG")


def test_the_style_is_applied() -> None:
    with plt.style.context("default"):
        plotting.use_style()
        assert plt.rcParams["figure.dpi"] == 80 and plt.rcParams["figure.constrained_layout.use"] and plt.rcParams["pdf.fonttype"] == 42


def test_layer_profile_without_neurons_is_flat(ax: Axes) -> None:
    plotting.layer_profile(ax, pd.DataFrame({"dimension": [], "aspect": [], "layer": []}), layers=2, width=10)
    assert [p.get_height() for p in ax.patches] == [0] * 16


# --------------------------------------------------------------------------------------------------- prices and the organism
@pytest.mark.parametrize("price, label", [("perplexity_ratio", "perplexity"), ("degenerate", "degenerate")])
def test_effect_cost_draws_measured_settings_and_tells_their_fate_by_fill(ax: Axes, price: str, label: str) -> None:
    tuning = pd.DataFrame({
        "dimension": OWN, "aspect": [ASPECTS[0]] * 3 + [ASPECTS[1]], "effect": [0.4, 0.3, 0.2, 0.1], price: [2.0, 1.1, np.nan, 1.4],
        "usable": [False, True, False, False], "chosen": [False, True, False, True],
    })  # fmt: skip
    assert plotting.effect_cost(ax, tuning, price, 1.5) is ax and label in ax.get_xlabel()
    lowered, raised = of_type(ax, PathCollection)
    np.testing.assert_allclose(raised.get_offsets(), [[2.0, 0.4], [1.1, 0.3]])
    np.testing.assert_allclose(lowered.get_offsets(), [[1.4, 0.1]])
    assert [to_hex(c).upper() for c in raised.get_facecolors()] == ["#FFFFFF", plotting.COLOURS[OWN]]
    assert to_hex(lowered.get_facecolors()[0]) == to_hex("0.7")
    assert not np.array_equal(raised.get_paths()[0].vertices, lowered.get_paths()[0].vertices)
    assert [list(line.get_xdata()) for line in ax.lines] == [[1.5, 1.5], [0, 1]]


def test_fate_handles_have_the_fills_of_effect_cost() -> None:
    assert {h.get_label(): h.get_markerfacecolor() for h in plotting.fate_handles()} == {"chosen": "black", "refused": "white", "over the budget, taken": "0.7"}


def test_dimension_handles_name_every_colour() -> None:
    assert {h.get_label(): h.get_color() for h in plotting.dimension_handles()} == {DIMENSION_LABELS[d]: plotting.COLOURS[d] for d in DIMENSIONS}


def test_learning_curve_draws_the_loss_above_its_floor(ax: Axes) -> None:
    curve = pd.DataFrame({"step": [200, 400], "share": [0.5, 1.0], "loss": [1.0, 0.2]})
    assert plotting.learning_curve(ax, curve, 0.15) is ax
    line, floor = ax.lines
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 1.0], [1.0, 0.2]])
    assert list(floor.get_ydata()) == [0.15, 0.15] and floor.get_linestyle() == ":" and ax.get_yscale() == "log"


def test_trial_bars_put_one_group_a_trial_from_the_top(ax: Axes) -> None:
    trials = pd.DataFrame({"recipe": ["base", "course_first"], "seed": [0, 1], "effect": [0.3, 0.1], "random": [0.01, -0.02]})
    assert plotting.trial_bars(ax, trials, {"effect": "black", "random": "grey"}, "title") is ax
    bars = [(round(p.get_y() + p.get_height() / 2, 6), p.get_width()) for p in ax.patches]
    assert bars == [(1.2, 0.3), (0.2, 0.1), (0.8, 0.01), (-0.2, -0.02)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["base, seed 0", "course first, seed 1"] and ax.get_title(loc="left") == "title"
