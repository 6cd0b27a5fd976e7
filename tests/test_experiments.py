"""experiments: the headline table and its conditions, the choice on `tune`, the cache of parts, the dataset's identity."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from valuelocate_utils import experiments, runs
from valuelocate_utils.runs import RunError
from valuelocate_utils.schwartz import ASPECTS, DIMENSIONS, cosine

OWN = DIMENSIONS[0]
CELL = (OWN, "positive")


# --------------------------------------------------------------------------------------------------------- hand-made tables
def effect(**changed: Any) -> dict[str, Any]:
    """A row of `effects`: located amplification of OWN, positive, gamma 2, forced choice."""
    return {
        "edited_dimension": OWN, "aspect": "positive", "method": experiments.METHOD, "intervention": "amplify", "control": "none", "gamma": 2.0,
        "measured_dimension": OWN, "outcome": "forced_choice", "n": 100, "baseline": 0.5, "mean": 0.30, "low": 0.25, "high": 0.36,
    } | changed  # fmt: skip


def cell_rows(sign: float = 1.0, located: tuple = (0.30, 0.25, 0.36), control: tuple = (0.01, -0.02, 0.04), **keys: Any) -> list[dict[str, Any]]:
    """Located, control, generated and perplexity rows of one cell; values are given as intended and stored unsigned."""
    def stored(values: tuple) -> dict[str, float]:
        mean, low, high = values
        return {"mean": sign * mean, "low": min(sign * low, sign * high), "high": max(sign * low, sign * high)}

    return [
        effect(**stored(located), **keys),
        effect(control="random", **stored(control), **keys),
        effect(outcome="generated_choice", n=40, mean=sign * 0.45, **keys),
        effect(outcome="generated_choice", n=40, control="random", mean=sign * 0.9, **keys),
        effect(outcome="perplexity", n=40, baseline=2.0, mean=0.5, **keys),
        effect(outcome="perplexity", n=40, control="random", baseline=2.0, mean=9.0, **keys),
    ]


def tuned(**changed: Any) -> dict[str, Any]:
    """A row of `tuning`: the chosen setting of OWN, positive."""
    return {
        "dimension": OWN, "aspect": "positive", "method": experiments.METHOD, "threshold": 0.3, "gamma": 2.0, "neurons": 40, "n": 40, "effect": 0.28,
        "perplexity_ratio": 1.1, "degenerate": 0.0, "usable": True, "chosen": True,
    } | changed  # fmt: skip


def answered(aspect: str = "positive", control: str = "none", degenerate: tuple[bool, ...] = (False, False, False, True)) -> list[dict[str, Any]]:
    return [{"edited_dimension": OWN, "aspect": aspect, "control": control, "degenerate": d} for d in degenerate]


def headline(effects: list[dict], tuning: list[dict] | None = None, answers: list[dict] | None = None) -> pd.DataFrame:
    return experiments.headline(pd.DataFrame(effects), pd.DataFrame(tuning or [tuned()]), pd.DataFrame(answers or answered()))


# ---------------------------------------------------------------------------------------------------------------- headline
def test_headline_reads_every_number_from_its_own_row() -> None:
    distractors = [
        effect(gamma=1.0, mean=0.9, low=0.8, high=1.0),  # another dose
        effect(measured_dimension=DIMENSIONS[1], mean=0.8),  # another dimension's questions
        effect(edited_dimension=DIMENSIONS[1], mean=0.7),
        effect(aspect="negative", mean=-0.6),
        effect(intervention="ablate", gamma=2.0, mean=-0.5),
    ]
    answers = answered() + answered(control="random", degenerate=(True,) * 4) + answered(aspect="none", control="none", degenerate=(True,) * 4)
    head = headline(distractors + cell_rows(), [tuned(chosen=False, gamma=1.0, usable=False), tuned()], answers)
    assert len(head) == 1
    assert head.loc[0].to_dict() == pytest.approx({
        "dimension": OWN, "aspect": "positive", "neurons": 40, "threshold": 0.3, "gamma": 2.0, "n": 100, "effect": 0.30, "low": 0.25, "high": 0.36,
        "random": 0.01, "random_low": -0.02, "random_high": 0.04, "generated": 0.45, "degenerate": 0.25, "perplexity_ratio": 1.25, "usable": True,
        "clear": True, "holds": True,
    })  # fmt: skip


def test_headline_of_the_negative_aspect_is_signed_as_intended() -> None:
    head = headline(cell_rows(sign=-1.0, aspect="negative"), [tuned(aspect="negative")], answered("negative"))
    row = head.loc[0]
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((0.30, 0.25, 0.36))
    assert (row["random"], row["random_low"], row["random_high"]) == pytest.approx((0.01, -0.02, 0.04))
    assert row["generated"] == pytest.approx(0.45) and row["holds"]


@pytest.mark.parametrize(
    ("changed", "usable", "clear"),
    [
        ({"located": (0.30, 0.04, 0.56)}, True, False),  # touches the control's upper end
        ({"located": (0.099, 0.08, 0.12)}, True, True),
        ({"control": (0.051, 0.02, 0.08)}, True, True),
        ({"control": (-0.051, -0.08, -0.02)}, True, True),
        ({}, False, True),
        ({"located": (-0.30, -0.36, -0.25)}, True, False),
    ],
    ids=["not clear of the control", "too small", "control too high", "control too low", "over the budget", "the wrong way"],
)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_cell_falls_when_one_condition_fails(changed: dict, usable: bool, clear: bool, aspect: str) -> None:
    rows = cell_rows(sign=experiments.sign_of(aspect), aspect=aspect, **changed)
    row = headline(rows, [tuned(aspect=aspect, usable=usable)], answered(aspect)).loc[0]
    assert not row["holds"] and row["clear"] == clear


@pytest.mark.parametrize("changed", [{"located": (0.10, 0.07, 0.13)}, {"control": (0.05, 0.02, 0.08)}, {"control": (-0.05, -0.08, -0.02)}])
def test_a_cell_holds_at_the_very_bounds(changed: dict) -> None:
    assert headline(cell_rows(**changed)).loc[0, "holds"]


def test_a_cell_without_a_control_does_not_hold() -> None:
    rows = [row for row in cell_rows() if row["control"] == "none"]
    row = headline(rows).loc[0]
    assert np.isnan(row["random"]) and not row["clear"] and not row["holds"]


@pytest.mark.parametrize(
    ("changed", "word"), [({"clear": False}, "interval"), ({"effect": 0.099}, r"effect \+0.10 is below 0.10"), ({"random": np.nan}, "control"), ({"usable": False}, "budget")]
)
def test_shortfalls_name_the_missed_condition_and_no_other(changed: dict, word: str) -> None:
    good = {"effect": 0.3, "low": 0.2, "random": 0.01, "random_high": 0.05, "clear": True, "usable": True}
    assert experiments.shortfalls(SimpleNamespace(**good)) == []
    (phrase,) = experiments.shortfalls(SimpleNamespace(**good | changed))
    assert re.search(word, phrase)


# ----------------------------------------------------------------------------------------------------------------- summary
def whole_matrix(shift: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects that follow the circle exactly, plus `shift` for whole rows, and a matching headline table."""
    rows, head = [], []
    for k, d in enumerate(DIMENSIONS):
        for aspect in ASPECTS:
            sign = experiments.sign_of(aspect)
            head.append({"dimension": d, "aspect": aspect, "gamma": 2.0, "effect": 0.1 * (k + 1), "random": -0.06 if k == 2 else 0.01, "holds": k != 2})
            rows += [effect(edited_dimension=d, aspect=aspect, measured_dimension=e, mean=sign * (0.3 * cosine(d, e) + shift * k)) for e in DIMENSIONS]
            rows.append(effect(edited_dimension=d, aspect=aspect, measured_dimension=d, gamma=1.0, mean=-sign * 9.0))
    return pd.DataFrame(head), pd.DataFrame(rows)


def test_summary_counts_means_and_extremes() -> None:
    found = experiments.summary(*whole_matrix())
    assert found == pytest.approx({
        "cells": 8, "cells_holding": 6, "mean_effect": 0.25, "smallest_effect": 0.1, "largest_random": 0.06, "circle_fit": 1.0, "circle_fit_centred": 1.0,
    })  # fmt: skip


def test_summary_tells_the_raw_fit_from_the_centred_one() -> None:
    found = experiments.summary(*whole_matrix(shift=0.2))
    matrix = np.array([[0.3 * cosine(d, e) + 0.2 * k for e in DIMENSIONS] for k, d in enumerate(DIMENSIONS)])
    ideal = np.array([[cosine(d, e) for e in DIMENSIONS] for d in DIMENSIONS])
    assert found["circle_fit"] == pytest.approx(np.corrcoef(matrix.ravel(), ideal.ravel())[0, 1])
    assert found["circle_fit"] < 0.9 and found["circle_fit_centred"] == pytest.approx(1.0)


def test_at_chosen_keeps_each_cells_own_dose() -> None:
    head = pd.DataFrame([{"dimension": OWN, "aspect": "positive", "gamma": 2.0}, {"dimension": OWN, "aspect": "negative", "gamma": 1.0}])
    rows = [effect(aspect=a, gamma=g, n=n) for n, (a, g) in enumerate([("positive", 2.0), ("positive", 1.0), ("negative", 2.0), ("negative", 1.0)], 1)]
    kept = experiments.at_chosen(pd.DataFrame([*rows, effect(intervention="ablate", gamma=0.0)]), head)
    assert sorted(kept["n"]) == [1, 4]


# ------------------------------------------------------------------------------------------------------------------ tuning
class FakeBench:
    """A bench whose effects and costs are given for each (number of neurons, gamma); it records which costs were asked for."""

    def __init__(self, effects: dict[tuple[int, float], float], costs: dict[tuple[int, float], tuple[float, float]] | None = None, width: int = 100) -> None:
        thresholds, gammas = {3: 0.1, 2: 0.3, 1: 0.5}, sorted({g for _, g in effects})
        kept = tuple(sorted({thresholds[n] for n, _ in effects}))
        self.config = runs.Config(preset="fake", thresholds=kept, gammas=gammas, budget=runs.Budget(degenerate=0.05, perplexity_ratio=1.5))
        self.model, self.effects, self.costs, self.asked = SimpleNamespace(d_ff=width), effects, costs or {}, []

    def _key(self, plan: Any) -> tuple[int, float]:
        raised = max(float(edit.offset.abs().max()) for edit in plan.layers.values())
        weight = float(experiments.amplify(NEURONS, "positive", 1.0, "gate").layers[0].offset.max())
        return plan.n_neurons, round(raised / weight, 6)

    def change(self, dimension: str, plan: Any) -> np.ndarray:
        assert dimension == OWN
        return np.full(4, self.effects[self._key(plan)])

    def cost(self, dimension: str, plan: Any) -> tuple[float, float]:
        assert dimension == OWN
        self.asked.append(self._key(plan))
        return self.costs.get(self._key(plan), (1.0, 0.0))


NEURONS = pd.DataFrame({
    "dimension": OWN, "aspect": ["positive", "negative", "negative"], "method": experiments.METHOD, "layer": 0, "neuron": [0, 1, 2],
    "score": [0.9, -0.35, -0.2], "a95": 1.0,
})  # fmt: skip


def tuned_cell(bench: FakeBench, aspect: str = "positive") -> pd.DataFrame:
    return experiments._tune_cell(bench, NEURONS, OWN, aspect)


def chosen_of(table: pd.DataFrame) -> tuple[int, float, bool]:
    (row,) = table[table["chosen"]].itertuples()
    return row.neurons, row.gamma, row.usable


EFFECTS = {(3, 1.0): 0.1, (3, 2.0): 0.4, (2, 1.0): 0.2, (2, 2.0): 0.3}


@pytest.mark.parametrize(
    ("costs", "wins", "asked"),
    [
        ({}, (3, 2.0), 1),
        ({(3, 2.0): (1.51, 0.0)}, (2, 2.0), 2),
        ({(3, 2.0): (1.0, 0.051)}, (2, 2.0), 2),
        ({(3, 2.0): (1.5, 0.05)}, (3, 2.0), 1),
        ({(3, 2.0): (9.0, 1.0), (2, 2.0): (1.0, 1.0)}, (2, 1.0), 3),
    ],
    ids=["all inside", "perplexity over", "degenerate over", "at the very budget", "two over"],
)
def test_the_largest_effect_inside_the_budget_is_chosen(costs: dict, wins: tuple[int, float], asked: int) -> None:
    bench = FakeBench(EFFECTS, costs)
    table = tuned_cell(bench)
    assert chosen_of(table) == (*wins, True)
    assert table["usable"].sum() == table["chosen"].sum() == 1
    assert bench.asked == sorted(EFFECTS, key=EFFECTS.get, reverse=True)[:asked] and table["perplexity_ratio"].notna().sum() == asked
    assert {(r.neurons, r.gamma): r.effect for r in table.itertuples()} == pytest.approx(EFFECTS)


def test_with_nothing_usable_the_lowest_perplexity_is_chosen_and_says_so() -> None:
    costs = {(3, 2.0): (4.0, 0.0), (2, 2.0): (1.7, 0.0), (2, 1.0): (1.6, 0.5), (3, 1.0): (1.8, 0.0)}
    table = tuned_cell(FakeBench(EFFECTS, costs))
    assert chosen_of(table) == (2, 1.0, False) and not table["usable"].any() and table["perplexity_ratio"].notna().all()


def test_lowering_is_tuned_by_the_fall_of_the_preference() -> None:
    """For the negative aspect a fall is as intended; two neurons at threshold 0.3 are (one target, one opposing)."""

    class Lowering(FakeBench):
        def _key(self, plan: Any) -> tuple[int, float]:
            target = NEURONS[NEURONS["neuron"].isin(plan.layers[0].neuron.tolist()) & (NEURONS["aspect"] == "negative")]
            unit = float((target["a95"] * experiments.amplify(target, "negative", 1.0, "gate").layers[0].offset.numpy()).max())
            return plan.n_neurons, round(float(plan.layers[0].offset.max()) / unit, 6)

    table = tuned_cell(Lowering({(3, 1.0): -0.1, (3, 2.0): 0.4, (2, 1.0): -0.2, (2, 2.0): -0.05}), "negative")
    assert chosen_of(table) == (2, 1.0, True)
    assert table["effect"].max() == pytest.approx(0.2) and table["effect"].min() == pytest.approx(-0.4)


def test_a_setting_without_a_disjoint_control_is_not_chosen() -> None:
    bench = FakeBench(EFFECTS, width=4)  # three of four neurons leave one for the control, two of four leave two
    table = tuned_cell(bench)
    assert chosen_of(table) == (2, 2.0, True) and (3, 2.0) not in bench.asked


def test_nothing_is_chosen_where_no_setting_has_a_control() -> None:
    table = tuned_cell(FakeBench(EFFECTS, width=3))
    assert len(table) == 4 and not table["chosen"].any()


def test_a_threshold_that_leaves_the_aspect_without_neurons_is_skipped() -> None:
    bench = FakeBench({(3, 1.0): 0.1, (1, 1.0): 0.2})
    assert sorted(tuned_cell(bench)["threshold"]) == [0.1, 0.5]
    assert tuned_cell(FakeBench({(1, 1.0): 0.2}), "negative").empty


# ------------------------------------------------------------------------------------------------------------------- parts
@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    monkeypatch.setenv("VALUELOCATE_RUNS", str(tmp_path / "runs"))
    return runs.open_run("cells", "smoke")


def test_cached_makes_a_table_once(run: runs.Run) -> None:
    calls = []

    def make() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"x": [1.5, np.nan]})

    first, second = (experiments.cached(run, "effects.a.b", [], make) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert len(calls) == 1 and [p.name for p in run.path("parts").iterdir()] == [f"effects.a.b.{runs.digest_of([])}.parquet"]


def test_cached_leaves_nothing_behind_when_making_fails(run: runs.Run) -> None:
    with pytest.raises(ZeroDivisionError):
        experiments.cached(run, "x", [], lambda: pd.DataFrame({"x": [1 / 0]}))
    assert not list(run.path("parts").glob("x*"))


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1"])
def test_a_damaged_part_is_named_with_the_way_out(run: runs.Run, content: bytes) -> None:
    path = run.path(f"parts/tuning.a.b.{runs.digest_of([])}.parquet")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"runs/cells/parts/tuning\.a\.b\.\w+\.parquet is damaged .*: delete it") as caught:
        experiments.cached(run, "tuning.a.b", [], lambda: pytest.fail("made again"))
    assert "\n" not in str(caught.value)


def test_evaluate_without_any_chosen_cell_is_refused(run: runs.Run) -> None:
    with pytest.raises(RunError, match="no cell has neurons to edit"):
        experiments.evaluate(run, None, None, NEURONS, pd.DataFrame([tuned(chosen=False)]))


# -------------------------------------------------------------------------------------------------------------------- data
def write_dataset(folder: Path, text: str) -> None:
    persona = " ".join(["You"] + ["hold"] * 39)
    question = {
        "id": "q1", "dimension": OWN, "value": "stimulation", "topic": "work", "family": "f1", "split": "locate",
        "question": " ".join([text] + ["word"] * 39) + "?", "expresses": "take the boat", "rejects": "stay at home", "first": "expresses",
    }  # fmt: skip
    values = {"openness_to_change": "stimulation", "self_transcendence": "benevolence_caring", "conservation": "tradition", "self_enhancement": "achievement"}
    personas = [
        {"id": f"{d}.{a}", "dimension": d, "aspect": a, "value": values[d], "split": "locate", "text": persona} for d in DIMENSIONS for a in ASPECTS
    ]
    folder.mkdir(exist_ok=True)
    for name, rows in (("descriptions", personas), ("questions", [question])):
        (folder / f"{name}.all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_load_data_notes_the_dataset_and_refuses_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUELOCATE_RUNS", str(tmp_path / "runs"))
    write_dataset(tmp_path / "data", "Here")
    run = runs.open_run("mine", "smoke", settings={"data": str(tmp_path / "data")})
    data = experiments.load_data(run)
    assert run.manifest["dataset_sha256"] == data.sha256 == experiments.load_data(run).sha256
    write_dataset(tmp_path / "data", "There")
    with pytest.raises(RunError, match="the dataset has changed since run 'mine' began: choose another RUN=, or delete runs/mine"):
        experiments.load_data(run)
    assert run.manifest["dataset_sha256"] == data.sha256
