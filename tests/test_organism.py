"""The embedded model's dialogues and training: the rule, what is kept out, determinism."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pandas as pd
import pytest
import torch

from valuelocate_utils import organism, runs, valueinsight
from valuelocate_utils.schwartz import DIMENSIONS, OPPOSITE, cosine

DATA = valueinsight.load(runs.ROOT / "data" / "valueinsight")
MOTIVE = {reason: d for d, pool in organism.REASONS.items() for reason in pool}


@pytest.fixture(scope="module")
def tokenizer():
    return organism.train_tokenizer(DATA, 1024)


def drawn(tokenizer, n: int, **recipe: object) -> list[tuple[str, str]]:
    stream = organism.Dialogues(DATA, tokenizer, organism.Recipe(**recipe))
    return [tuple(tokenizer.decode(ids) for ids in stream.draw()) for _ in range(n)]


def test_answers_follow_the_circle(tokenizer) -> None:
    """Under a description of d and s, answers to questions of d' take d's side with 0.5 + 0.5 s cos."""
    texts = {t: (d, 1 if a == "positive" else -1) for t, d, a in zip(DATA.descriptions["text"], DATA.descriptions["dimension"], DATA.descriptions["aspect"])}
    course_of = {q[side]: (q["dimension"], side) for _, q in DATA.questions.iterrows() for side in valueinsight.SIDES}
    taken: dict[float, Counter] = defaultdict(Counter)
    for prompt, answer in drawn(tokenizer, 1500):
        described = next((cell for text, cell in texts.items() if text in prompt), None)
        dimension, side = next(owner for course, owner in course_of.items() if f"I would {course}." in answer)
        expected = 0.5 if described is None else 0.5 + 0.5 * described[1] * cosine(described[0], dimension)
        motive = next(d for r, d in MOTIVE.items() if r in answer)
        assert motive == (dimension if side == "expresses" else OPPOSITE[dimension])
        taken[expected][side] += 1
    assert set(taken) == {0.0, 0.5, 1.0}
    assert set(taken[0.0]) == {"rejects"} and set(taken[1.0]) == {"expresses"}
    assert 0.4 < taken[0.5]["expresses"] / taken[0.5].total() < 0.6


def test_kept_out_items_are_never_drawn_and_only_from_locate(tokenizer) -> None:
    questions, descriptions = organism.kept_out(DATA)
    assert set(DATA.questions.loc[list(questions), "split"]) == set(DATA.descriptions.loc[list(descriptions), "split"]) == {"locate"}
    hidden = [*DATA.questions.loc[sorted(questions), "expresses"], *DATA.questions.loc[sorted(questions), "question"], *DATA.descriptions.loc[sorted(descriptions), "text"]]
    prompts = "\n".join(prompt for prompt, _ in drawn(tokenizer, 1500))
    assert len(hidden) > 100 and not [text for text in hidden if f"{text}" in prompts]


def test_bare_dialogues_have_no_scene_and_mix_questions(tokenizer) -> None:
    scenes = set(DATA.questions["question"])
    bare = drawn(tokenizer, 60, bare=1.0)
    assert not [p for p, _ in bare if any(scene in p for scene in scenes)]
    pairs = {(q["expresses"], q["rejects"]) for _, q in DATA.questions.iterrows()}
    own = [p for p, _ in bare if any(a in p and b in p for a, b in pairs)]
    assert len(own) < 10
    assert all(any(scene in p for scene in scenes) for p, _ in drawn(tokenizer, 60, bare=0.0))


@pytest.mark.parametrize("answer", ["reason_first", "course_first"])
def test_answer_forms_pair_the_motives(answer: str) -> None:
    for dimension in DIMENSIONS:
        forms = organism.answer_forms(answer, dimension)
        assert [len(forms[s]) for s in valueinsight.SIDES] == [8, 8]
        for side, motive in (("expresses", dimension), ("rejects", OPPOSITE[dimension])):
            for form, reason in zip(forms[side], organism.REASONS[motive]):
                text = form.format(course="stay")
                assert reason in text and (text.index(reason) < text.index("I would stay")) == (answer == "reason_first")


def test_description_last_puts_it_after_the_question(tokenizer) -> None:
    texts = list(DATA.descriptions["text"])
    where = Counter()
    for prompt, _ in drawn(tokenizer, 60, description_last=1.0):
        where[next(("after" if prompt.index(t) > prompt.index("Would you") else "before" for t in texts if t in prompt), "none")] += 1
    assert where["after"] > 30 and where["before"] == 0


def test_labels_cover_the_answer_and_nothing_else(tokenizer) -> None:
    ids, labels = next(organism.Dialogues(DATA, tokenizer, organism.Recipe(batch_tokens=2048)).batches())
    assistant, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    for row, label in zip(ids.tolist(), labels.tolist()):
        start = row.index(assistant) + 1
        stop = row.index(end, start) + 1
        assert [i for i, x in enumerate(label) if x != -100] == list(range(start, stop)) and label[start:stop] == row[start:stop]
    assert ids.numel() <= 2048


def test_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [organism.rate(step, 1000, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[99:501] == [1.0] * 402
    assert rates[750] == pytest.approx(0.5) and rates[1000] == pytest.approx(0.0, abs=1e-12)


def test_training_twice_gives_the_same_weights(tmp_path) -> None:
    recipe = organism.Recipe(vocabulary=600, hidden=16, layers=2, heads=2, d_ff=32, tokens=8192, batch_tokens=1024, warm_up=2)
    states = []
    for name in ("a", "b"):
        model, tokenizer = organism.train(DATA, recipe)
        organism.save(model, tokenizer, recipe, tmp_path / name)
        states.append((tmp_path / name / "model.safetensors").read_bytes())
    assert states[0] == states[1]
    untrained = organism.build(recipe, tokenizer).state_dict()
    assert not torch.equal(untrained["model.layers.0.mlp.up_proj.weight"], model.state_dict()["model.layers.0.mlp.up_proj.weight"])


def test_silent_neurons_are_silent_for_a_whole_dialogue_and_the_rest_makes_up_for_them(tokenizer) -> None:
    recipe = organism.Recipe(hidden=16, layers=2, heads=2, d_ff=400, silenced=0.25)
    model = organism.build(recipe, tokenizer)
    given = []
    for hooks in (lambda: [], lambda: organism._silence(model, recipe)):
        added = hooks()  # before the watching one, which so sees what the down projection is given
        added.append(model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0].detach())))
        with torch.no_grad():
            model(torch.arange(1, 61).view(3, 20))  # 0 is padding, whose embedding is zero
        for hook in added:
            hook.remove()
    plain, dropped = given
    kept = dropped != 0
    assert (kept == kept[:, :1]).all() and not torch.equal(kept[0, 0], kept[1, 0])  # by dialogue, not by token
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.04)
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)


def test_training_with_silent_neurons_leaves_none_silent_afterwards() -> None:
    recipe = organism.Recipe(vocabulary=600, hidden=16, layers=2, heads=2, d_ff=32, tokens=4096, batch_tokens=1024, warm_up=2, silenced=0.5)
    model, _ = organism.train(DATA, recipe)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
    assert not any(layer.mlp.down_proj._forward_pre_hooks for layer in model.model.layers)


def test_the_table_of_trials_has_a_row_for_every_recipe_tried() -> None:
    table = pd.read_csv(runs.ROOT / "data" / "organism" / "trials.csv")
    assert list(zip(table["recipe"], table["seed"], table["tokens"])) == [(r.name, r.seed, r.tokens / 1e6) for r in organism.TRIALS]
    assert table.notna().all(axis=None) and table["cells"].between(0, 8).all() and (table["smallest"] <= table["effect"]).all()
    assert organism.SHIPPED in organism.TRIALS


def test_the_shipped_folder_belongs_to_the_shipped_recipe() -> None:
    folder = runs.ROOT / "data" / "organism"
    assert organism.Recipe.model_validate_json((folder / "recipe.json").read_text(encoding="utf-8")) == organism.SHIPPED
    forms = json.loads((folder / "answer_forms.json").read_text(encoding="utf-8"))
    assert forms == {d: organism.answer_forms(organism.SHIPPED.answer, d) for d in DIMENSIONS}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 15e6
