"""outcomes: forced choice, likelihoods, effect tables."""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers as t

from valuelocate_utils import interventions, models, outcomes
from valuelocate_utils.activations import Answer
from valuelocate_utils.interventions import EditPlan
from valuelocate_utils.models import Model
from valuelocate_utils.schwartz import ANGLES, DIMENSIONS
from valuelocate_utils.valueinsight import SIDES

QUESTIONS = tiny.dataset(2).questions.iloc[:3]
FORMS = {
    d: {"expresses": ["surely I would {course} .", "{course}", "I {course}"], "rejects": ["no , I would {course} .", "{course}", "yes {course}"]} for d in DIMENSIONS
}
NEURONS = pd.DataFrame({
    "aspect": ["positive", "negative"] * 4, "layer": [0, 0, 1, 1] * 2, "neuron": range(8), "score": [0.5, -0.5] * 4, "a95": 4.0,
})  # fmt: skip


def hooked_log_prob(model: Model, family: str, plan: EditPlan | None, prompt: list[int], answer: list[int]) -> float:
    """log p(answer | prompt) from one whole plain pass, hooks editing the answer's positions only."""
    def edit(layer: int):
        def change(a: torch.Tensor) -> torch.Tensor:
            out, e = a.clone(), plan.layers[layer]
            for neuron, scale, offset, cap in zip(e.neuron, e.scale, e.offset, e.cap):
                out[:, len(prompt) :, neuron] = (a[:, len(prompt) :, neuron] * scale + offset).clamp(max=cap.item())
            return out
        return change

    with ExitStack() as stack:
        for layer in plan.layers if plan else ():
            stack.enter_context(tiny.plain_hook(model, family, layer, plan.site, edit(layer)))
        return tiny.log_prob(model, prompt, answer)


def brute_preference(model, family, questions, plan=None, normalisation="sum", rendering="choice", descriptions=None, forms=None) -> list[float]:
    """The definition, one row at a time."""
    found = []
    for qid, q in questions.iterrows():
        chosen = forms(qid, q) if forms else {side: ["I would {course}."] for side in SIDES}
        both = []
        for first, second in (SIDES, SIDES[::-1]) if rendering == "choice" else ((None, None),):
            text = q["question"] + (f" Would you {q[first]} or {q[second]}?" if first else "")
            if descriptions is not None:
                text = f"{descriptions[qid]}\n\n{text}"
            prompt = models.encode(model, text)
            odds = []
            for side in SIDES:
                total = 0.0
                for form in chosen[side]:
                    answer = model.tokenizer(form.format(course=q[side]), add_special_tokens=False)["input_ids"]
                    log_p = hooked_log_prob(model, family, plan, prompt, answer)
                    total += math.exp(log_p / (len(answer) if normalisation == "mean" else 1))
                odds.append(total)
            both.append(odds[0] / sum(odds))
        found.append(sum(both) / len(both))
    return found


def assert_same_odds(found: pd.Series, expected: list[float]) -> None:
    """Compare on the log-odds scale, where a small preference is as visible as a middling one."""
    np.testing.assert_allclose(log_odds(found), log_odds(np.array(expected)), atol=1e-3)


def log_odds(p: np.ndarray | pd.Series) -> np.ndarray:
    return np.log(np.asarray(p)) - np.log1p(-np.asarray(p))


def plan_of(site: str) -> EditPlan:
    return interventions.amplify(NEURONS, "positive", 1.0, site)


# ---------------------------------------------------------------------------------------------------------- forced choice
@pytest.mark.parametrize("normalisation", ["sum", "mean"])
def test_preference_equals_brute_force(family: tuple[str, Model], normalisation: str) -> None:
    name, model = family
    choice = outcomes.ForcedChoice(model, QUESTIONS, normalisation=normalisation)
    found, plan = choice.preference(), plan_of("gate")
    assert list(found.index) == list(QUESTIONS.index)
    assert_same_odds(found, brute_preference(model, name, QUESTIONS, None, normalisation))
    edited = choice.preference(plan)
    assert_same_odds(edited, brute_preference(model, name, QUESTIONS, plan, normalisation))
    assert np.abs(log_odds(edited) - log_odds(found)).max() > 0.01
    np.testing.assert_array_equal(choice.preference(), found)  # the edit leaves nothing behind, the prompts' cache included


@pytest.mark.parametrize("family, site", [("llama", "up"), ("llama", "product"), ("gpt2", "product")])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_preference_with_forms_at_every_site(family: str, site: str, batch_size: int) -> None:
    model, plan = replace(tiny.model(family), forms=FORMS), plan_of(site)
    choice = outcomes.ForcedChoice(model, QUESTIONS, batch_size=batch_size)
    for edit in (None, plan):
        expected = brute_preference(model, family, QUESTIONS, edit, forms=lambda _, q: FORMS[q["dimension"]])
        assert_same_odds(choice.preference(edit), expected)


@pytest.mark.parametrize("rendering", ["open", "choice"])
@pytest.mark.parametrize("template", [True, False])
def test_preference_with_descriptions_and_renderings(rendering: str, template: bool) -> None:
    model = tiny.model("llama", template)
    descriptions = pd.Series({qid: f"w{n} w{n + 1} you ." for n, qid in enumerate(QUESTIONS.index)})
    found = outcomes.ForcedChoice(model, QUESTIONS, rendering, descriptions).preference(plan_of("gate"))
    assert_same_odds(found, brute_preference(model, "llama", QUESTIONS, plan_of("gate"), "sum", rendering, descriptions))


def test_a_limit_of_forms_uses_the_drawn_ones(llama: Model) -> None:
    model = replace(llama, forms=FORMS)
    drawn = {qid: outcomes.drawn_forms(FORMS[q["dimension"]], 2, qid) for qid, q in QUESTIONS.iterrows()}
    found = outcomes.ForcedChoice(model, QUESTIONS, forms=2).preference()
    assert_same_odds(found, brute_preference(model, "llama", QUESTIONS, forms=lambda qid, _: drawn[qid]))


def test_answers_of_one_token(llama: Model) -> None:
    """Nothing is fed after the prompt, so no edit can reach such an answer."""
    short = QUESTIONS.assign(expresses="yes", rejects="no")
    model = replace(llama, forms={d: {side: ["{course}"] for side in SIDES} for d in DIMENSIONS})
    choice = outcomes.ForcedChoice(model, short)
    expected = brute_preference(model, "llama", short, forms=lambda *_: model.forms["conservation"])
    assert_same_odds(choice.preference(), expected)
    assert_same_odds(choice.preference(plan_of("gate")), expected)


def test_equal_courses_are_equally_preferred_and_swapped_courses_complement(llama: Model) -> None:
    same = QUESTIONS.assign(rejects=QUESTIONS["expresses"])
    np.testing.assert_allclose(outcomes.ForcedChoice(llama, same).preference(), 0.5, atol=1e-6)
    swapped = QUESTIONS.assign(expresses=QUESTIONS["rejects"], rejects=QUESTIONS["expresses"])
    np.testing.assert_allclose(outcomes.ForcedChoice(llama, swapped).preference() + outcomes.ForcedChoice(llama, QUESTIONS).preference(), 1, atol=1e-5)


def test_dimensions_with_different_numbers_of_forms(llama: Model) -> None:
    """A folder's answer_forms.json may give one dimension more sentences than another (here the sizes also add up by chance)."""
    questions = tiny.dataset(1).questions
    forms = {d: {side: FORMS[d][side][:n] for side in SIDES} for n, d in zip((2, 1, 3, 2), DIMENSIONS)}
    model = replace(llama, forms=forms)
    found = outcomes.ForcedChoice(model, questions).preference()
    assert_same_odds(found, brute_preference(model, "llama", questions, forms=lambda _, q: forms[q["dimension"]]))


# ------------------------------------------------------------------------------------------------------------------ forms
MANY = {"expresses": [f"e{i}" for i in range(8)], "rejects": [f"r{i}" for i in range(8)]}


@pytest.mark.parametrize("limit, expected", [(3, 3), (8, 8), (20, 8), (None, 8)])
def test_drawn_forms_match_across_sides(limit: int | None, expected: int) -> None:
    drawn = outcomes.drawn_forms(MANY, limit, "q1")
    numbers = [[int(form[1:]) for form in drawn[side]] for side in SIDES]
    assert numbers[0] == numbers[1] == sorted(set(numbers[0])) and len(numbers[0]) == expected
    assert [drawn[side][0][0] for side in SIDES] == ["e", "r"]
    assert drawn == outcomes.drawn_forms(MANY, limit, "q1")


def test_drawn_forms_differ_between_questions_and_use_all() -> None:
    drawn = [tuple(outcomes.drawn_forms(MANY, 3, f"q{i}")["expresses"]) for i in range(40)]
    assert len(set(drawn)) > 10 and {form for forms in drawn for form in forms} == set(MANY["expresses"])


def test_drawn_forms_refuse_unequal_sides() -> None:
    with pytest.raises(ValueError, match="same number"):
        outcomes.drawn_forms({"expresses": ["a", "b"], "rejects": ["c"]}, None, "q")


# ------------------------------------------------------------------------------------------------------------- likelihood
PROMPTS, IDS = tiny.prompts([5, 2, 9, 4]), [*tiny.prompts([3, 7, 1], seed=4), []]
ANSWERS = [Answer("", ids) for ids in IDS]


def hf_loss(hf: t.PreTrainedModel, prompt: list[int], ids: list[int]) -> float:
    """transformers' own loss over the answer's tokens."""
    row = torch.tensor([[*prompt, *ids]])
    return hf(input_ids=row, labels=torch.where(torch.arange(row.shape[1]) < len(prompt), -100, row)).loss.item()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answer_nll_is_transformers_loss(family: tuple[str, Model], batch_size: int) -> None:
    _, model = family
    found = outcomes.answer_nll(model, PROMPTS, ANSWERS, batch_size)
    np.testing.assert_allclose(found[:3], [hf_loss(model.hf, p, i) for p, i in zip(PROMPTS, IDS[:3])], rtol=1e-5)
    assert math.isnan(found[3])


@pytest.mark.parametrize("config", [
    t.GraniteConfig(**tiny.COMMON, num_key_value_heads=2, logits_scaling=4.0),
    t.CohereConfig(**tiny.COMMON, num_key_value_heads=2, logit_scale=0.25),
], ids=["granite", "cohere"])  # fmt: skip
def test_answer_nll_where_a_model_scales_its_logits(config: t.PretrainedConfig) -> None:
    model = models.wrap(tiny.network(config), tiny.tokenizer())
    found = outcomes.answer_nll(model, PROMPTS[:3], ANSWERS[:3], 4)
    np.testing.assert_allclose(found, [hf_loss(model.hf, p, i) for p, i in zip(PROMPTS, IDS[:3])], rtol=1e-4)


def test_gemma_caps_its_logits() -> None:
    """The cap is set low enough to matter."""
    config = tiny.CONFIGS["gemma2"]()
    config.final_logit_softcapping = 0.5
    model = models.wrap(tiny.network(config), tiny.tokenizer())
    found = outcomes.answer_nll(model, PROMPTS[:3], ANSWERS[:3], 4)
    np.testing.assert_allclose(found, [hf_loss(model.hf, p, i) for p, i in zip(PROMPTS, IDS[:3])], rtol=1e-5)
    model.hf.config.final_logit_softcapping = None
    assert (np.abs(outcomes.answer_nll(model, PROMPTS[:3], ANSWERS[:3], 4) - found) > 0.01).any()


@pytest.mark.parametrize("nll, n, expected", [
    ([math.log(2), math.log(8)], [1, 1], 4.0),
    ([math.log(2), math.log(8)], [3, 1], 2 ** 1.5),
    ([math.log(5), math.nan], [2, 0], 5.0),
    ([math.log(5), math.nan], [2, 7], 5.0),
    ([math.nan, math.nan], [0, 0], math.inf),
])  # fmt: skip
def test_perplexity_weighs_tokens(nll: list[float], n: list[int], expected: float) -> None:
    assert outcomes.perplexity(pd.Series(nll), pd.Series(n)) == pytest.approx(expected, rel=1e-12)


def test_judge_answers_rows(llama: Model) -> None:
    texts = ["I would {expresses}", "{rejects}", "", "w1 w1 w1 w1 w1"]
    questions = tiny.dataset(1).questions
    texts = [text.format(**q) for text, (_, q) in zip(texts, questions.iterrows())]
    given = [Answer(text, llama.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    table = outcomes.judge_answers(llama, questions, PROMPTS, given, "choice", 2)
    assert list(table["question_id"]) == list(questions.index) and list(table["answer"]) == texts
    assert list(table["course"]) == ["expresses", "rejects", "neither", "neither"]
    assert list(table["degenerate"]) == [False, False, True, True]
    assert list(table["n_tokens"]) == [5, 2, 0, 5]
    for n in (0, 1, 3):
        assert table["nll"][n] == pytest.approx(hf_loss(llama.hf, PROMPTS[n], given[n].ids), rel=1e-5)
    assert math.isnan(table["nll"][2])


def test_taken() -> None:
    assert outcomes.taken(pd.Series(["expresses", "rejects", "both", "neither"])).tolist() == [1.0, 0.0, 0.5, 0.5]


# ----------------------------------------------------------------------------------------------------------------- matrix
def effects(positive: np.ndarray, negative: np.ndarray) -> pd.DataFrame:
    """An effects table of located amplification, with rows of other kinds that must not count."""
    rows = []
    for (i, a), (j, b) in itertools.product(enumerate(DIMENSIONS), repeat=2):
        for aspect, matrix in (("positive", positive), ("negative", negative)):
            row = {"edited_dimension": a, "measured_dimension": b, "aspect": aspect, "intervention": "amplify", "control": "none", "outcome": "forced_choice"}
            rows += [row | {"mean": matrix[i, j]}, row | {"control": "random", "mean": 9.0}, row | {"intervention": "ablate", "mean": 8.0}, row | {"outcome": "degenerate", "mean": 7.0}]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def cosines() -> pd.DataFrame:
    """cos(angle) between dimensions, from the circle's angles."""
    return pd.DataFrame([[math.cos(ANGLES[a] - ANGLES[b]) for b in DIMENSIONS] for a in DIMENSIONS], index=DIMENSIONS, columns=DIMENSIONS)


def test_effect_matrix_halves_the_difference_of_directions() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(2, 4, 4))
    matrix = outcomes.effect_matrix(effects(positive, negative))
    assert list(matrix.index) == list(matrix.columns) == list(DIMENSIONS)
    np.testing.assert_allclose(matrix, (positive - negative) / 2, atol=1e-12)


def test_effect_matrix_keeps_its_shape_when_dimensions_are_missing() -> None:
    table = effects(np.eye(4), -np.eye(4)).query("edited_dimension == 'conservation'")
    matrix = outcomes.effect_matrix(table)
    assert matrix.shape == (4, 4) and matrix.notna().sum().sum() == 4 and matrix.loc["conservation", "conservation"] == 1


def test_leakage_closed_forms() -> None:
    matrix = pd.DataFrame(
        [[0.4, 0.1, -0.3, 0.2], [0.5, 0.5, 0.5, 0.5], [0.1, 0.1, -0.2, 0.1], [0.1, 0.1, 0.1, 0.0]], index=DIMENSIONS, columns=DIMENSIONS
    )
    before = matrix.copy()
    found = outcomes.leakage(matrix)
    assert found.iloc[0] == pytest.approx((0.1 + 0.2) / 3 / 0.4) and found.iloc[1] == pytest.approx(1.0)
    assert found.iloc[2:].isna().all()  # own effect not above zero
    assert list(found.index) == list(DIMENSIONS)
    pd.testing.assert_frame_equal(matrix, before)


def test_the_circle_itself_fits_perfectly_and_leaks_nothing() -> None:
    circle = cosines()
    assert outcomes.circle_fit(circle) == outcomes.circle_fit(circle, centred=True) == pytest.approx(1.0)
    assert outcomes.circle_fit(-2 * circle + 5) == pytest.approx(-1.0)
    np.testing.assert_allclose(outcomes.leakage(circle), 0, atol=1e-12)


def test_circle_fit_is_pearsons_correlation() -> None:
    matrix = pd.DataFrame(np.random.default_rng(3).normal(size=(4, 4)), index=DIMENSIONS, columns=DIMENSIONS)
    x, y = matrix.to_numpy().ravel(), cosines().to_numpy().ravel()
    expected = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
    assert outcomes.circle_fit(matrix) == pytest.approx(expected)
    shifted = matrix.add([1.0, -2.0, 3.0, 0.5], axis=0)
    assert outcomes.circle_fit(shifted, centred=True) == pytest.approx(outcomes.circle_fit(matrix, centred=True))
    assert outcomes.circle_fit(shifted) != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 0.013, 1 / 3])
@pytest.mark.parametrize("centred", [False, True])
def test_an_all_equal_matrix_fits_nothing_and_leaks_all(value: float, centred: bool) -> None:
    matrix = pd.DataFrame(value, index=DIMENSIONS, columns=DIMENSIONS)
    assert math.isnan(outcomes.circle_fit(matrix, centred))
    np.testing.assert_allclose(outcomes.leakage(matrix), 1.0 if value else math.nan)


def test_rows_that_are_constant_fit_nothing_once_centred() -> None:
    for values in np.random.default_rng(0).normal(size=(50, 4)):
        matrix = pd.DataFrame(np.repeat(values[:, None], 4, 1), index=DIMENSIONS, columns=DIMENSIONS)
        assert math.isnan(outcomes.circle_fit(matrix, centred=True))
