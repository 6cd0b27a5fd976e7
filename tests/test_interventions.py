"""interventions: edit plans, matched controls, edited generation."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import transformers as t

from valuelocate_utils import activations, interventions, localization, models
from valuelocate_utils.interventions import EditPlan, LayerEdit
from valuelocate_utils.models import Model

NEURONS = pd.DataFrame({
    "aspect": ["positive", "negative", "positive", "negative"], "layer": [1, 0, 0, 1], "neuron": [5, 9, 3, 2], "score": [0.15, -0.4, 0.35, -0.15],
    "a95": [2.0, 3.0, 1.0, 0.5],
})  # fmt: skip


def rows(plan: EditPlan) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(layer, neuron) -> (scale, offset, cap)."""
    return {
        (layer, int(n)): (float(s), float(o), float(c)) for layer, e in plan.layers.items() for n, s, o, c in zip(e.neuron, e.scale, e.offset, e.cap)
    }


# ------------------------------------------------------------------------------------------------------------------ plans
@pytest.mark.parametrize("delta, weight", [
    (0.15, 0.5), (-0.15, 0.5), (0.35, 1 / (1 + math.exp(-2))), (-0.4, 1 / (1 + math.exp(-2.5))), (1.0, 1 / (1 + math.exp(-8.5))), (0.0, 1 / (1 + math.exp(1.5))),
])  # fmt: skip
def test_strength_is_the_papers_sigmoid(delta: float, weight: float) -> None:
    assert interventions.strength(np.array([delta]))[0] == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.1, 1, 2.0])
@pytest.mark.parametrize("aspect", ["positive", "negative"])
def test_amplify_is_the_papers_rule(aspect: str, gamma: float) -> None:
    plan = interventions.amplify(NEURONS, aspect, gamma, "up")
    found = rows(plan)
    assert plan.site == "up" and plan.n_neurons == len(found) == 4
    for _, row in NEURONS.iterrows():
        scale, offset, cap = found[row.layer, row.neuron]
        f = 1 / (1 + math.exp(-10 * (abs(row.score) - 0.15)))
        assert scale == 1.0
        if row.aspect == aspect:
            assert offset == pytest.approx(gamma * row.a95 * f, rel=1e-6) and cap == math.inf
        else:
            assert (offset, cap) == (0.0, 0.0)


def test_amplify_moves_activations_as_the_paper_says() -> None:
    plan = interventions.amplify(NEURONS, "positive", 2.0, "gate")
    a = torch.tensor([[-1.0, 0.0, 1.5]]).T.expand(3, 16).contiguous()  # three tokens, all neurons alike
    layer0, layer1 = plan.layers[0](a), plan.layers[1](a)
    rise = 2.0 * 1.0 / (1 + math.exp(-2))
    torch.testing.assert_close(layer0[:, 3], torch.tensor([-1.0, 0.0, 1.5]) + rise)
    torch.testing.assert_close(layer1[:, 5], torch.tensor([-1.0, 0.0, 1.5]) + 2.0 * 2.0 * 0.5)
    assert layer0[:, 9].tolist() == layer1[:, 2].tolist() == [-1.0, 0.0, 0.0]  # min(0, a)
    others = [n for n in range(16) if n not in (3, 9)]
    assert torch.equal(layer0[:, others], a[:, others])


@pytest.mark.parametrize("gamma", [math.nan, math.inf, 0, 0.0, -1.0, "x", None])
def test_amplify_refuses_a_bad_gamma(gamma: object) -> None:
    with pytest.raises(ValueError, match="gamma must be a number above 0, not"):
        interventions.amplify(NEURONS, "positive", gamma, "gate")


@pytest.mark.parametrize("make", [lambda a: interventions.amplify(NEURONS, a, 1.0, "gate"), lambda a: interventions.ablate(NEURONS, a, "gate")])
def test_an_unknown_aspect_is_refused(make) -> None:
    """Otherwise a slip of the pen takes every neuron for an opposing one."""
    with pytest.raises(ValueError):
        make("postive")


def test_ablate_zeroes_one_aspect() -> None:
    plan = interventions.ablate(NEURONS, "negative", "product")
    assert set(rows(plan)) == {(0, 9), (1, 2)} and plan.site == "product"
    edited = plan.layers[0](torch.full((2, 3, 16), 7.0))
    assert (edited[..., 9] == 0).all() and (edited[..., [n for n in range(16) if n != 9]] == 7).all()


@pytest.mark.parametrize("make", [lambda n: interventions.amplify(n, "positive", 1.0, "gate"), lambda n: interventions.ablate(n, "positive", "gate")])
def test_no_neurons_no_plan(make) -> None:
    with pytest.raises(ValueError, match="no neurons"):
        make(NEURONS.iloc[:0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_edit_leaves_its_input_alone(dtype: torch.dtype) -> None:
    edit = LayerEdit(torch.tensor([2, 0]), torch.tensor([2.0, 0.5]), torch.tensor([1.0, -1.0]), torch.tensor([4.0, math.inf]))
    given = torch.tensor([[1.0, 2.0, 1.0], [4.0, 5.0, 6.0]], dtype=dtype)
    kept = given.clone()
    edited = edit(given)
    assert torch.equal(given, kept) and edited.dtype == dtype
    assert edited.tolist() == [[-0.5, 2.0, 3.0], [1.0, 5.0, 4.0]]


# --------------------------------------------------------------------------------------------------------------- controls
def test_matched_random_keeps_layers_and_sizes_on_other_neurons() -> None:
    plan = interventions.amplify(pd.concat([NEURONS, NEURONS.assign(neuron=NEURONS["neuron"] + 1)]), "positive", 1.5, "gate")
    seen = set()
    for seed in range(20):
        control = interventions.matched_random(plan, 64, seed)
        assert control.site == plan.site and set(control.layers) == set(plan.layers)
        for layer, edit in control.layers.items():
            own = plan.layers[layer]
            assert len(set(edit.neuron.tolist())) == len(own.neuron) and not set(edit.neuron.tolist()) & set(own.neuron.tolist())
            assert 0 <= edit.neuron.min() and edit.neuron.max() < 64
            for name in ("scale", "offset", "cap"):
                assert torch.equal(getattr(edit, name), getattr(own, name))
            seen.update(edit.neuron.tolist())
        assert rows(control) == rows(interventions.matched_random(plan, 64, seed))
    assert rows(interventions.matched_random(plan, 64, 0)) != rows(interventions.matched_random(plan, 64, 1))
    assert len(seen) > 40  # draws from everywhere, not from one corner


def test_matched_random_refuses_when_no_disjoint_control_exists() -> None:
    plan = interventions.ablate(pd.DataFrame({"aspect": "positive", "layer": 0, "neuron": range(5)}), "positive", "gate")
    assert sorted(interventions.matched_random(plan, 10, 0).layers[0].neuron.tolist()) == [5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="layer 0: 5 of 9 neurons"):
        interventions.matched_random(plan, 9, 0)


# ------------------------------------------------------------------------------------------------------ edited generation
def strong_plan(site: str, layers: tuple[int, ...] = (0, 1)) -> EditPlan:
    """An edit that touches a third of the neurons hard enough to change greedy answers."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for layer in layers:
        neuron = torch.randperm(tiny.D_FF, generator=generator)[:20]
        cap = torch.full((20,), math.inf)
        cap[10:] = 0.0
        made[layer] = LayerEdit(neuron, torch.ones(20), torch.where(cap == 0, 0.0, 3.0), cap)
    return EditPlan(site, made)


def by_hand(plan: EditPlan, layer: int, activations_: torch.Tensor) -> torch.Tensor:
    """The edit, one neuron at a time."""
    out = activations_.clone()
    for (at, neuron), (scale, offset, cap) in rows(plan).items():
        if at == layer:
            out[..., neuron] = (out[..., neuron] * scale + offset).clamp(max=cap)
    return out


def hooked_generate(model: Model, family: str, plan: EditPlan, **inputs: object) -> torch.Tensor:
    """Greedy ids through plain hooks that edit every pass of a single token."""
    with ExitStack() as stack:
        for layer in plan.layers:
            stack.enter_context(
                tiny.plain_hook(model, family, layer, plan.site, lambda a, layer=layer: by_hand(plan, layer, a) if a.shape[1] == 1 else None)
            )
        return model.hf.generate(**inputs)


PROMPTS = tiny.prompts([6, 3, 9])
SITES = [(name, "gate") for name in tiny.FAMILIES] + [("llama", "up"), ("llama", "product"), ("gpt2", "product"), ("neox", "product"), ("phi3", "product")]


@pytest.mark.parametrize("family, site", SITES)
def test_edited_greedy_ids_equal_plain_hooks(family: str, site: str) -> None:
    model, plan = tiny.model(family), strong_plan(site)
    padded = models.pad(PROMPTS, 0, "cpu")
    inputs = {"input_ids": padded.ids, "attention_mask": padded.mask, "max_new_tokens": 8, "do_sample": False}
    plain = model.hf.generate(**inputs)
    with interventions.edited(model, plan) as generate, torch.inference_mode():
        ids = generate(**inputs)
        again = generate(**inputs)
    assert torch.equal(ids, hooked_generate(model, family, plan, **inputs)) and torch.equal(again, ids)
    width = padded.ids.shape[1]
    assert torch.equal(ids[:, : width + 1], plain[:, : width + 1])  # the first new token comes from the unedited prompt
    assert not torch.equal(ids, plain)
    assert torch.equal(model.hf.generate(**inputs), plain)  # the model is clean afterwards
    with model.body.trace(**padded.inputs()):
        hidden = model.body.output.last_hidden_state.save()
    assert torch.equal(hidden, model.hf.base_model(**padded.inputs()).last_hidden_state)


def test_each_batch_of_an_edited_answering_is_edited(llama: Model) -> None:
    plan = strong_plan("gate")
    with interventions.edited(llama, plan) as generate:
        given = activations.answer(llama, PROMPTS, 8, 1, generate=generate)
    for prompt, answer in zip(PROMPTS, given):
        row = torch.tensor([prompt])
        ids = hooked_generate(llama, "llama", plan, input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=8, do_sample=False)
        assert ids[0, len(prompt) :].tolist() == answer.ids


def test_no_plan_is_the_model_itself(llama: Model) -> None:
    with interventions.edited(llama, None) as generate:
        assert activations.answer(llama, PROMPTS, 5, 3, generate=generate) == activations.answer(llama, PROMPTS, 5, 3)


@pytest.mark.parametrize("layers", [(0,), (1,)])
def test_a_plan_of_one_layer_leaves_the_other_alone(llama: Model, layers: tuple[int, ...]) -> None:
    plan, row = strong_plan("gate", layers), torch.tensor([PROMPTS[0]])
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "max_new_tokens": 8, "do_sample": False}
    with interventions.edited(llama, plan) as generate:
        assert torch.equal(generate(**inputs), hooked_generate(llama, "llama", plan, **inputs))


@pytest.mark.parametrize("new", [1, 12])
def test_answers_that_end_early(new: int) -> None:
    """The end of sequence is made the third token of the edited answer, so that generation stops before its limit."""
    model, plan, row = tiny.model(), strong_plan("gate"), torch.tensor([PROMPTS[0]])
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "max_new_tokens": new, "do_sample": False}
    free = hooked_generate(model, "llama", plan, **inputs)[0, len(PROMPTS[0]) :].tolist()
    end = free[min(2, new - 1)]
    model.hf.generation_config.eos_token_id = end
    with warnings.catch_warnings(), interventions.edited(model, plan) as generate:
        answer = activations.answer(model, PROMPTS[:1], new, 1, generate=generate)[0]
    assert answer.ids == free[: free.index(end) + 1] and len(answer.ids) <= 3


def test_an_empty_plan_is_refused_before_it_can_hang(llama: Model) -> None:
    with pytest.raises(ValueError, match="no neurons"), interventions.edited(llama, EditPlan("gate", {})):
        pass


def test_the_model_is_usable_after_an_error_under_an_edit(llama: Model) -> None:
    before = activations.answer(llama, PROMPTS, 4, 3)
    with pytest.raises(ZeroDivisionError), interventions.edited(llama, strong_plan("gate")):
        raise ZeroDivisionError
    assert activations.answer(llama, PROMPTS, 4, 3) == before


# -------------------------------------------------------------------------------------------------------- a planted neuron
PLANTED, FOR, AGAINST, YES, NO = 7, 20, 21, tiny.WORDS.index("yes"), tiny.WORDS.index("no")


def planted_model() -> Model:
    """A one-layer Llama that says `yes` while neuron 7 is active and `no` otherwise.

    Coordinates of the residual stream: 0 the description's sign in the embedding, 1 its attended mean, 2 constant 1, 3 the decision.
    """
    hf = tiny.network(t.LlamaConfig(**tiny.COMMON | {"num_hidden_layers": 1}))
    layer = hf.model.layers[0]
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        hf.model.embed_tokens.weight[:, 2] = 1.0
        hf.model.embed_tokens.weight[FOR, 0], hf.model.embed_tokens.weight[AGAINST, 0] = 1.0, -1.0
        layer.self_attn.v_proj.weight[0, 0] = 1.0  # queries and keys are zero: every token attends evenly
        layer.self_attn.o_proj.weight[1, 0] = 50.0
        layer.mlp.gate_proj.weight[:, 2] = torch.where(torch.arange(tiny.D_FF) % 2 == 0, 1.0, -1.0)
        layer.mlp.gate_proj.weight[PLANTED] = 0.0
        layer.mlp.gate_proj.weight[PLANTED, 1] = 1.0
        layer.mlp.up_proj.weight[:, 2] = 1.0
        layer.mlp.down_proj.weight[3, PLANTED] = 10.0
        hf.lm_head.weight[NO, 2], hf.lm_head.weight[YES, 3] = 0.1, 1.0
    return models.wrap(hf, tiny.tokenizer(), name="planted")


def test_a_planted_neuron_is_found_and_its_amplification_flips_the_answer() -> None:
    model = planted_model()
    plain = [[30, 31, 32], [33, 34, 35, 36]]
    shards, said = {}, {}
    for aspect, token in (("positive", FOR), ("negative", AGAINST)):
        prompts = [[token, *p] for p in plain]
        given = activations.answer(model, prompts, 4, 2)
        said[aspect] = [a.ids for a in given]
        shards[aspect] = [activations.replay(model, [p], [a.ids], "gate", 1, 8) for p, a in zip(prompts, given)]
    assert said == {"positive": [[YES] * 4] * 2, "negative": [[NO] * 4] * 2}

    scores = localization.probability_difference(shards["positive"], shards["negative"]).assign(dimension="conservation", method="probability_difference")
    neurons = localization.select(scores, 0.1)
    assert neurons[["layer", "neuron", "aspect", "score"]].values.tolist() == [[0, PLANTED, "positive", 1.0]]
    assert neurons["a95"].item() > 0

    for prompts, aspect, expected in (
        (plain, "positive", [NO, YES, YES, YES]),  # without a description: no; raised: yes, from the second token on
        ([[FOR, *p] for p in plain], "negative", [YES, NO, NO, NO]),  # the target's opponent is capped at 0
    ):
        plan = interventions.amplify(neurons, aspect, 1.0, "gate")
        assert [a.ids for a in activations.answer(model, prompts, 4, 2)] == [[expected[0]] * 4] * 2
        with interventions.edited(model, plan) as generate:
            assert [a.ids for a in activations.answer(model, prompts, 4, 2, generate=generate)] == [expected] * 2
        with interventions.edited(model, interventions.matched_random(plan, model.d_ff, 0)) as generate:
            assert [a.ids for a in activations.answer(model, prompts, 4, 2, generate=generate)] == [[expected[0]] * 4] * 2
