"""The protocol: what is tuned on `tune`, what is measured once on `test`, and the table of headline numbers.

Per-cell results are cached as small parquet files under `parts/`, so that a stopped run goes on at the next cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import runs, valueinsight
from .activations import answer, cell_shards
from .interventions import EditPlan, ablate, amplify, edited, matched_random
from .localization import passes, probability_difference, select
from .models import Model, encode, load
from .outcomes import ForcedChoice, circle_fit, effect_matrix, judge_answers, perplexity, taken
from .runs import Config, Run
from .schwartz import ASPECTS, DIMENSIONS, OPPOSITE
from .significance import mean_interval
from .valueinsight import ValueInsight, draw_descriptions, render, spread

CELLS = [(d, a) for d in DIMENSIONS for a in ASPECTS]
METHOD = "probability_difference"
# What the main result must show, in units of preference; the same for every run and model.
LEAST_EFFECT, LARGEST_CONTROL, LEAST_MEAN_EFFECT = 0.10, 0.05, 0.15


def sign_of(aspect: str) -> float:
    """+1 for the positive aspect, -1 for the negative."""
    return 1.0 if aspect == ASPECTS[0] else -1.0


def load_data(run: Run) -> ValueInsight:
    """The run's dataset; its hash goes into the manifest.

    Raises:
        DatasetError: see `valueinsight.load`.
        RunError: the dataset has changed since the run began.
    """
    data = valueinsight.load(Path(runs.resolve(run.config.data)))
    if run.manifest.get("dataset_sha256", data.sha256) != data.sha256:
        raise runs.RunError(f"the dataset has changed since run {run.name!r} began: choose another RUN=, or delete runs/{run.name}")
    run.note(dataset_sha256=data.sha256)
    return data


def load_model(run: Run) -> Model:
    """The run's model; its identity goes into the manifest.

    Raises:
        ModelError: it cannot be loaded (see `models.load`).
        RunError: the run was made with other weights under the same name.
    """
    config = run.config
    if config.threads:
        torch.set_num_threads(config.threads)
    model = load(runs.resolve(config.model), config.revision, config.dtype, config.device, config.attention, config.site)
    identity = {"name": model.name, "revision": model.revision, "weights_sha256": model.weights_sha256, "template": model.template}
    known = run.manifest.get("model")
    if known and known["weights_sha256"] != identity["weights_sha256"]:
        raise runs.RunError(f"run {run.name!r} was made with other weights of {model.name}: choose another RUN=, or delete runs/{run.name}")
    run.note(model=identity)
    return model


class Bench:
    """Everything needed to measure edits on one split, without descriptions; baselines are measured once."""

    def __init__(self, model: Model, data: ValueInsight, config: Config, split: str, limit: int | None = None) -> None:
        self.model, self.config = model, config
        self.questions = {d: data.select(d, split, limit or config.limits[split]) for d in DIMENSIONS}
        self._choices: dict[str, ForcedChoice] = {}
        self._baselines: dict[str, pd.Series] = {}
        self._generated: dict[str, pd.DataFrame] = {}

    def _choice(self, dimension: str) -> ForcedChoice:
        if dimension not in self._choices:
            c = self.config
            self._choices[dimension] = ForcedChoice(
                self.model, self.questions[dimension], c.rendering, normalisation=c.preference, forms=c.choice_forms, batch_size=c.batch_size
            )
        return self._choices[dimension]

    def baseline(self, dimension: str) -> pd.Series:
        """Preference of the unedited model, by question."""
        if dimension not in self._baselines:
            self._baselines[dimension] = self._choice(dimension).preference()
        return self._baselines[dimension]

    def change(self, dimension: str, plan: EditPlan) -> np.ndarray:
        """Change of preference under an edit, [question]."""
        return (self._choice(dimension).preference(plan) - self.baseline(dimension)).to_numpy()

    def answers(self, dimension: str, plan: EditPlan | None = None) -> pd.DataFrame:
        """Greedy answers to `generated` questions, spread evenly over the split, judged (see `outcomes.judge_answers`)."""
        if plan is None and dimension in self._generated:
            return self._generated[dimension]
        c, questions = self.config, spread(self.questions[dimension], self.config.generated)
        prompts = [encode(self.model, render(q, None, c.rendering)) for _, q in questions.iterrows()]
        with edited(self.model, plan) as generate:
            given = answer(self.model, prompts, c.max_new_tokens, c.batch_size, c.repetition_penalty, generate)
        table = judge_answers(self.model, questions, prompts, given, c.rendering, c.batch_size)
        if plan is None:
            self._generated[dimension] = table
        return table

    def cost(self, dimension: str, plan: EditPlan) -> tuple[float, float]:
        """(perplexity ratio of edited to unedited answers under the unedited model, share of degenerate answers)."""
        before, after = self.answers(dimension), self.answers(dimension, plan)
        return perplexity(after["nll"], after["n_tokens"]) / perplexity(before["nll"], before["n_tokens"]), float(after["degenerate"].mean())


def following(model: Model, data: ValueInsight, config: Config, split: str = "test", descriptions_split: str | None = None) -> pd.DataFrame:
    """How well a model follows descriptions: one row a (dimension, described, aspect) with the share of questions whose
    forced-choice preference lies on the described side, and the mean preference.

    `described` is the question's own dimension, the opposite one (whose aspect points the other way), or `none`.
    """
    rows = []
    for d in DIMENSIONS:
        questions = data.select(d, split, config.limits[split])
        for described, aspect in [(d, a) for a in ASPECTS] + [(OPPOSITE[d], a) for a in ASPECTS] + [("none", "none")]:
            texts, sign = None, 0.0
            if described != "none":
                drawn = draw_descriptions(questions, data.personas(described, aspect, descriptions_split or split), config.seed)
                texts, sign = drawn.map(data.descriptions["text"]), sign_of(aspect) * (1 if described == d else -1)
            p = ForcedChoice(model, questions, config.rendering, texts, config.preference, config.choice_forms, config.batch_size).preference()
            rows.append({"dimension": d, "described": described, "aspect": aspect, "n": len(p), "followed": ((p - 0.5) * sign > 0).mean() if sign else np.nan, "preference": p.mean()})
    return pd.DataFrame(rows)


def locate(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `scores` and `neurons` tables from a run's shards; `neurons` holds all at the loosest threshold, which `tune` narrows."""
    config, tables = run.config, []
    for dimension in DIMENSIONS:
        plus, minus = (cell_shards(run, dimension, aspect) for aspect in ASPECTS)
        table = probability_difference(plus, minus, config.permutations, config.seed)
        tables.append(table.assign(dimension=dimension, method=METHOD, site=config.site))
    scores = pd.concat(tables, ignore_index=True)[list(runs.SCHEMAS["scores"].columns)]
    return scores, select(scores, min(config.thresholds))


def plan_of(neurons: pd.DataFrame, setting, site: str) -> EditPlan:
    """The amplification plan of one row of the `tuning` table."""
    return amplify(_of(neurons, setting.dimension, setting.threshold), setting.aspect, setting.gamma, site)


def _of(neurons: pd.DataFrame, dimension: str, threshold: float) -> pd.DataFrame:
    return neurons[(neurons["dimension"] == dimension) & passes(neurons["score"], threshold)]


def cached(run: Run, name: str, depends_on: Sequence[pd.DataFrame], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of a part if it is there, else `make()`, written. A part is valid for the tables it was made from: their
    hash is in its name, parts/<name>.<hash>.parquet."""
    key = runs.digest_of([table.to_csv(index=False) for table in depends_on])
    path = run.path(f"parts/{name}.{key}.parquet")
    if path.exists():
        try:
            return pd.read_parquet(path)
        except Exception as error:
            raise runs.RunError(f"{run.relative(path)} is damaged ({runs.reason_of(error, path)}): delete it and run the same command again") from None
    table = make()
    with runs.atomic(path) as temporary:
        table.to_parquet(temporary, index=False)
    return table


def tune(run: Run, bench: Bench, neurons: pd.DataFrame) -> pd.DataFrame:
    """The `tuning` table: for every cell the effect of each (threshold, gamma) on `tune`, and the setting chosen.

    Chosen is the setting with the largest effect in the intended direction that stays inside the budget and leaves room for
    a disjoint random control. Costs are measured from the largest effect down until one is inside, so the others' are empty.
    Where none is, the one with the lowest perplexity among those tried is chosen and `usable` says False.
    """
    parts = [
        cached(run, f"tuning.{d}.{a}", [neurons[neurons["dimension"] == d]], lambda d=d, a=a: _tune_cell(bench, neurons, d, a))
        for d, a in runs.progress(CELLS, "tuning")
    ]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _tune_cell(bench: Bench, neurons: pd.DataFrame, dimension: str, aspect: str) -> pd.DataFrame:
    config, rows, plans = bench.config, [], []
    for threshold in config.thresholds:
        chosen = _of(neurons, dimension, threshold)
        if not (chosen["aspect"] == aspect).any():
            continue
        for gamma in config.gammas:
            plan = amplify(chosen, aspect, gamma, config.site)
            change = bench.change(dimension, plan)
            plans.append(plan)
            rows.append(
                {"dimension": dimension, "aspect": aspect, "method": METHOD, "threshold": threshold, "gamma": gamma, "neurons": plan.n_neurons, "n": len(change),
                 "effect": sign_of(aspect) * change.mean(), "perplexity_ratio": np.nan, "degenerate": np.nan, "usable": False, "chosen": False}
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(runs.SCHEMAS["tuning"].columns))
    for i in table["effect"].sort_values(ascending=False, kind="stable").index:
        if not _controllable(plans[i], bench.model.d_ff):
            continue
        ratio, degenerate = bench.cost(dimension, plans[i])
        table.loc[i, ["perplexity_ratio", "degenerate"]] = ratio, degenerate
        if ratio <= config.budget.perplexity_ratio and degenerate <= config.budget.degenerate:
            table.loc[i, ["usable", "chosen"]] = True
            return table
    if table["perplexity_ratio"].notna().any():
        table.loc[table["perplexity_ratio"].idxmin(), "chosen"] = True
    return table


def _controllable(plan: EditPlan, width: int) -> bool:
    return all(2 * len(edit.neuron) <= width for edit in plan.layers.values())


def evaluate(run: Run, bench: Bench, few: Bench, neurons: pd.DataFrame, tuning: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `effects` and `edited_answers` tables, on `test`, at the settings that `tune` chose.

    Args:
        bench: the test split, for the chosen settings.
        few: fewer of its questions, for what is measured many times: the random control, whose draws of neurons differ by far
            more than questions do, and the dose-response at the other gammas.
    """
    chosen = {(row.dimension, row.aspect): row for row in tuning[tuning["chosen"]].itertuples()}
    effects, answers = [], []
    for cell in runs.progress([c for c in CELLS if c in chosen], "test"):
        row = chosen[cell]
        found = _of(neurons, row.dimension, row.threshold)
        name, made_from = ".".join(cell), [found, tuning[(tuning["dimension"] == row.dimension) & (tuning["aspect"] == row.aspect)]]
        effects.append(cached(run, f"effects.{name}", made_from, lambda: pd.DataFrame([*_effect_rows(bench, few, found, row), *_sweep_rows(few, found, row)])))
        answers.append(cached(run, f"answers.{name}", made_from, lambda: _edited_answers(bench, found, row)))
    if not effects:
        raise runs.RunError("no cell has neurons to edit: lower the thresholds (SET='thresholds=[0.05]') or use another model")
    answers += [bench.answers(d).assign(edited_dimension=d, aspect="none", intervention="none", control="none", gamma=0.0) for d in DIMENSIONS]
    table = pd.concat(answers, ignore_index=True)[list(runs.SCHEMAS["edited_answers"].columns)]
    return pd.concat([*effects, _generated_effects(table, bench.config)], ignore_index=True)[list(runs.SCHEMAS["effects"].columns)], table


def _row(cell, intervention: str, control: str, gamma: float, measured: str, outcome: str, baseline: float, values: np.ndarray, config: Config) -> dict:
    interval = mean_interval(values, config.bootstrap, config.seed)
    return {
        "edited_dimension": cell.dimension, "aspect": cell.aspect, "method": METHOD, "intervention": intervention, "control": control,
        "gamma": float(gamma), "measured_dimension": measured, "outcome": outcome, "n": np.shape(values)[-1], "baseline": baseline, **interval._asdict(),
    }  # fmt: skip


def _draws(bench: Bench, plan: EditPlan, dimension: str, draws: int) -> np.ndarray:
    """Changes under `draws` matched random controls, [draw, question]."""
    return np.stack([bench.change(dimension, matched_random(plan, bench.model.d_ff, bench.config.seed + i)) for i in range(draws)])


def _effect_rows(bench: Bench, few: Bench, found: pd.DataFrame, cell) -> Iterator[dict]:
    config, own = bench.config, cell.dimension
    plans = {"amplify": (amplify(found, cell.aspect, cell.gamma, config.site), cell.gamma, config.control_draws),
             "ablate": (ablate(found, cell.aspect, config.site), 0.0, min(3, config.control_draws))}  # fmt: skip
    for name, (plan, gamma, draws) in plans.items():
        for measured in DIMENSIONS if name == "amplify" else (own,):
            yield _row(cell, name, "none", gamma, measured, "forced_choice", bench.baseline(measured).mean(), bench.change(measured, plan), config)
        if _controllable(plan, bench.model.d_ff):
            yield _row(cell, name, "random", gamma, own, "forced_choice", few.baseline(own).mean(), _draws(few, plan, own, draws), config)


def _sweep_rows(few: Bench, found: pd.DataFrame, cell) -> Iterator[dict]:
    config, own = few.config, cell.dimension
    for gamma in config.gammas:
        if gamma == cell.gamma:
            continue
        plan = amplify(found, cell.aspect, gamma, config.site)
        yield _row(cell, "amplify", "none", gamma, own, "forced_choice", few.baseline(own).mean(), few.change(own, plan), config)
        if _controllable(plan, few.model.d_ff):
            yield _row(cell, "amplify", "random", gamma, own, "forced_choice", few.baseline(own).mean(), _draws(few, plan, own, 1), config)


def _edited_answers(bench: Bench, found: pd.DataFrame, cell) -> pd.DataFrame:
    plan = amplify(found, cell.aspect, cell.gamma, bench.config.site)
    plans = {"none": plan}
    if _controllable(plan, bench.model.d_ff):
        plans["random"] = matched_random(plan, bench.model.d_ff, bench.config.seed)
    return pd.concat([
        bench.answers(cell.dimension, p).assign(edited_dimension=cell.dimension, aspect=cell.aspect, intervention="amplify", control=control, gamma=float(cell.gamma))
        for control, p in plans.items()
    ], ignore_index=True)  # fmt: skip


def _generated_effects(answers: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Rows of `effects` for the generated answers: course taken, degenerate share, perplexity under the unedited model."""
    rows, keys = [], ["edited_dimension", "aspect", "control", "gamma"]
    base = {d: t.set_index("question_id") for d, t in answers[answers["aspect"] == "none"].groupby("edited_dimension")}
    for (d, aspect, control, gamma), table in answers[answers["aspect"] != "none"].groupby(keys, sort=False):
        before, after = base[d], table.set_index("question_id").loc[base[d].index]
        cell = pd.Series({"dimension": d, "aspect": aspect})
        change = taken(after["course"]) - taken(before["course"])
        rows.append(_row(cell, "amplify", control, gamma, d, "generated_choice", taken(before["course"]).mean(), change.to_numpy(), config))
        worse = after["degenerate"].astype(float) - before["degenerate"].astype(float)
        rows.append(_row(cell, "amplify", control, gamma, d, "degenerate", before["degenerate"].mean(), worse.to_numpy(), config))
        rows.append(_perplexity_row(cell, control, gamma, before, after, config))
    return pd.DataFrame(rows)


def _perplexity_row(cell, control: str, gamma: float, before: pd.DataFrame, after: pd.DataFrame, config: Config) -> dict:
    """Change of perplexity, with an interval from resampling questions (a perplexity is not a mean over questions)."""
    def change(index: np.ndarray) -> float:
        return perplexity(*(after.iloc[index][c] for c in ("nll", "n_tokens"))) - perplexity(*(before.iloc[index][c] for c in ("nll", "n_tokens")))

    rng, n = np.random.default_rng(config.seed), len(after)
    resampled = [change(rng.integers(0, n, n)) for _ in range(min(500, config.bootstrap))]
    low, high = np.quantile(resampled, (0.025, 0.975))
    row = _row(cell, "amplify", control, gamma, cell["dimension"], "perplexity", perplexity(before["nll"], before["n_tokens"]), np.zeros(n), config)
    return row | {"mean": change(np.arange(n)), "low": low, "high": high}


def headline(effects: pd.DataFrame, tuning: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """One row a (dimension, aspect): the main result with intervals, its control and its price.

    `effect` and `random` are signed so that the intended direction is positive. `clear` says that the effect's interval lies
    above the control's; `holds` that nothing falls short (see `shortfalls`).
    """
    rows = []
    for setting in tuning[tuning["chosen"]].itertuples():
        of = effects[(effects["edited_dimension"] == setting.dimension) & (effects["aspect"] == setting.aspect) & (effects["intervention"] == "amplify")
                     & (effects["measured_dimension"] == setting.dimension) & np.isclose(effects["gamma"], setting.gamma)]  # fmt: skip
        choice = {r.control: _signed(r) for r in of[of["outcome"] == "forced_choice"].itertuples()}
        located, control = choice["none"], choice.get("random", (np.nan,) * 3)
        n = of[(of["outcome"] == "forced_choice") & (of["control"] == "none")]["n"].iloc[0]
        generated = of[(of["outcome"] == "generated_choice") & (of["control"] == "none")].iloc[0]
        price = of[(of["outcome"] == "perplexity") & (of["control"] == "none")].iloc[0]
        mine = answers[(answers["edited_dimension"] == setting.dimension) & (answers["aspect"] == setting.aspect) & (answers["control"] == "none")]
        rows.append(
            {"dimension": setting.dimension, "aspect": setting.aspect, "neurons": setting.neurons, "threshold": setting.threshold, "gamma": setting.gamma, "n": n,
             "effect": located[0], "low": located[1], "high": located[2], "random": control[0], "random_low": control[1], "random_high": control[2],
             "generated": sign_of(setting.aspect) * generated["mean"], "degenerate": mine["degenerate"].mean(),
             "perplexity_ratio": (price["baseline"] + price["mean"]) / price["baseline"], "usable": setting.usable, "clear": located[1] > control[2]}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(holds=[not shortfalls(row) for row in table.itertuples()])


def shortfalls(row) -> list[str]:
    """Why a row of the headline table does not hold, a phrase for each of the four conditions it misses; empty if it holds."""
    conditions = {
        f"its interval begins at {row.low:+.2f} and the control's ends at {row.random_high:+.2f}": row.clear,
        f"its effect {row.effect:+.2f} is below {LEAST_EFFECT:.2f}": row.effect >= LEAST_EFFECT,
        f"its control {row.random:+.2f} lies further than {LARGEST_CONTROL:.2f} from zero": abs(row.random) <= LARGEST_CONTROL,
        "no setting was inside the budget on tune": row.usable,
    }
    return [phrase for phrase, met in conditions.items() if not met]


def _signed(row) -> tuple[float, float, float]:
    return (row.mean, row.low, row.high) if sign_of(row.aspect) > 0 else (-row.mean, -row.high, -row.low)


def summary(head: pd.DataFrame, effects: pd.DataFrame) -> dict[str, float]:
    """The few numbers that carry the page: cells that hold, mean effect, largest |random|, fit to the circle (raw, centred)."""
    matrix = effect_matrix(at_chosen(effects, head))
    return {
        "cells": len(head), "cells_holding": int(head["holds"].sum()), "mean_effect": float(head["effect"].mean()), "smallest_effect": float(head["effect"].min()),
        "largest_random": float(head["random"].abs().max()), "circle_fit": circle_fit(matrix), "circle_fit_centred": circle_fit(matrix, centred=True),
    }  # fmt: skip


def at_chosen(effects: pd.DataFrame, head: pd.DataFrame) -> pd.DataFrame:
    """Rows of `effects` at each cell's chosen gamma (and the ablations' gamma 0 left out)."""
    keys = head[["dimension", "aspect", "gamma"]].rename(columns={"dimension": "edited_dimension"})
    return effects.merge(keys, on=["edited_dimension", "aspect", "gamma"])
