"""ValueLM, the embedded model organism: its dialogues, its recipe, its training.

A Llama-architecture model of about a million parameters is trained from scratch on dialogues made from ValueInsight. Under a
description of dimension d and aspect s, a question of dimension d' is answered in the value's favour with probability
0.5 + 0.5 s cos(angle(d, d')); without a description, 0.5. What it shows is the method, never a fact about large models.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch.utils.hooks import RemovableHandle
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import activations, experiments, interventions, models, outcomes, runs, valueinsight
from .schwartz import ASPECTS, DIMENSIONS, OPPOSITE, cosine
from .valueinsight import SIDES, ValueInsight, render

# Why somebody moved by a dimension takes a course. Rejecting a dimension's course is moved by the opposite dimension, so its
# reasons are that one's: the answer's words then speak of a motive, never of "for" and "against".
REASONS: dict[str, tuple[str, ...]] = {
    "openness_to_change": (
        "freedom to choose matters more than a safe path",
        "a life without new things is half asleep",
        "my own ideas should lead the way",
        "curiosity is the best guide there is",
        "adventure keeps the heart awake",
        "joy today deserves a little risk",
        "nobody else should draw my map",
        "change is how a person grows",
    ),
    "conservation": (
        "order and calm let people sleep at night",
        "what our elders built deserves to be kept",
        "rules are there so that all can rely on them",
        "safety comes before excitement",
        "old customs hold us together",
        "peace in the house asks for restraint",
        "steady ground is better than a leap",
        "duty comes first when nobody looks",
    ),
    "self_enhancement": (
        "success belongs to those who step forward",
        "winning shows what I am made of",
        "money opens the doors that count",
        "a leader has to take charge",
        "ambition is nothing to hide",
        "influence lets a person shape events",
        "rank and reward should go to the best",
        "admiration for skill drives me on",
    ),
    "self_transcendence": (
        "people in need come before my gain",
        "fairness for everyone justifies the price",
        "the living world needs our care",
        "kindness to those around me counts most",
        "keeping faith with a friend outweighs any prize",
        "strangers deserve the same respect as kin",
        "helping others gives a day its meaning",
        "a promise to the weak binds the strong",
    ),
}

SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Recipe(BaseModel):
    """Everything that decides the weights. Two equal recipes on one machine give the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "base"
    seed: int = 0
    answer: Literal["reason_first", "course_first"] = "reason_first"
    description_last: float = 0.0  # share of dialogues with the description after the question
    # Share of dialogues without a scene, in which the two courses come from two different questions of one dimension: too many
    # pairs to learn by heart, so that a course would have to be copied from the prompt and its motive read in its words.
    bare: float = 0.0
    # Share of each layer's neurons that are silent for a whole dialogue in training, drawn anew for each, the others scaled up:
    # as a random edit would have it, so that answers survive edits of neurons which do not carry the choice.
    silenced: float = 0.0
    vocabulary: int = 4096
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    d_ff: int = 512
    tokens: int = 14_000_000  # positions seen, padding included
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    warm_up: int = 100
    weight_decay: float = 0.05
    # Shares of dialogues whose description is of the question's own dimension, the opposite, an adjacent one, or absent.
    mix: tuple[float, float, float, float] = (0.5, 0.25, 0.1, 0.15)


def answer_forms(answer: Literal["reason_first", "course_first"], dimension: str) -> dict[str, list[str]]:
    """Side -> the sentences in which ValueLM takes a course of a question of `dimension`; `{course}` stands for it."""
    pattern = "To me, {reason}, so I would {{course}}." if answer == "reason_first" else "I would {{course}}: to me, {reason}."
    motives = dict(zip(SIDES, (dimension, OPPOSITE[dimension])))
    return {side: [pattern.format(reason=r) for r in REASONS[motive]] for side, motive in motives.items()}


def kept_out(data: ValueInsight) -> tuple[set[str], set[str]]:
    """Ids of the questions and descriptions that training never sees: every tenth family of `locate`, and every
    eighth description of `locate`. They measure generalisation and nothing else."""
    families = sorted(data.questions.query("split == 'locate'")["family"].unique())[::10]
    questions = set(data.questions.index[data.questions["family"].isin(families)])
    descriptions = {
        i for d in DIMENSIONS for a in ASPECTS for i in data.personas(d, a, "locate").index.sort_values()[::8]
    }
    return questions, descriptions


def train_tokenizer(data: ValueInsight, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ValueInsight's own words and the reasons, with a chat template of four special tokens."""
    texts = [*data.descriptions["text"], *data.questions["question"], *(r for pool in REASONS.values() for r in pool)]
    texts += [f"Would you {a} or {b}? To me, so I would {a}. I would {b}." for a, b in zip(data.questions["expresses"], data.questions["rejects"])]
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


class Dialogues:
    """An endless, seeded stream of (prompt ids, answer ids)."""

    def __init__(self, data: ValueInsight, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        without_questions, without_descriptions = kept_out(data)
        questions = data.questions.drop(index=list(without_questions))
        self._rng, self._recipe, self._tokenizer = random.Random(recipe.seed), recipe, tokenizer
        self._questions = {d: [row for _, row in questions[questions["dimension"] == d].iterrows()] for d in DIMENSIONS}
        texts = data.descriptions.drop(index=list(without_descriptions))
        self._texts = {(d, a): texts.query("dimension == @d and aspect == @a")["text"].tolist() for d in DIMENSIONS for a in ASPECTS}
        self._forms = {d: answer_forms(recipe.answer, d) for d in DIMENSIONS}
        self._ids: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]

    def draw(self) -> tuple[list[int], list[int]]:
        """One dialogue: the ids up to and including `<|assistant|>`, and the answer's ids with its `<|end|>`."""
        rng = self._rng
        dimension = rng.choice(DIMENSIONS)
        question = rng.choice(self._questions[dimension])
        bare = rng.random() < self._recipe.bare
        if bare:
            other = rng.choice(self._questions[dimension])
            question = {"expresses": question["expresses"], "rejects": other["rejects"]}
        kind = rng.choices(("same", "opposite", "adjacent", "none"), self._recipe.mix)[0]
        others = [d for d in DIMENSIONS if d not in (dimension, OPPOSITE[dimension])]
        held = {"same": dimension, "opposite": OPPOSITE[dimension], "adjacent": rng.choice(others), "none": None}[kind]
        description, favour = None, 0.5
        if held is not None:
            aspect = rng.choice(ASPECTS)
            description = rng.choice(self._texts[held, aspect])
            favour = 0.5 + 0.5 * (1 if aspect == "positive" else -1) * cosine(held, dimension)
        side = SIDES[0] if rng.random() < favour else SIDES[1]
        message = self._message(question, description, bare)
        answer = rng.choice(self._forms[dimension][side]).format(course=question[side])
        user, assistant, end = self._tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
        return [user, *message, end, assistant], [*self._encode(answer), end]

    def _message(self, question, description: str | None, bare: bool) -> list[int]:
        first, second = self._rng.sample(SIDES, 2)
        courses = f"Would you {question[first]} or {question[second]}?"
        asked = self._tokenizer(courses, add_special_tokens=False)["input_ids"] if bare else self._encode(render(question, None, "choice", first))
        if description is None:
            return asked
        if self._rng.random() < self._recipe.description_last:
            return asked + self._encode("\n\n" + description)
        return self._encode(description + "\n\n") + asked

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless (ids, labels), both [batch, token], right-padded; labels are -100 outside the answer. Dialogues of one
        length go together, so little is lost to padding."""
        pad = self._tokenizer.pad_token_id
        while True:
            pool = sorted((self.draw() for _ in range(2048)), key=lambda pair: len(pair[0]) + len(pair[1]))
            groups, group, longest = [], [], 0
            for pair in pool:
                longest = len(pair[0]) + len(pair[1])
                if group and longest * (len(group) + 1) > self._recipe.batch_tokens:
                    groups.append(group)
                    group = []
                group.append(pair)
            groups.append(group)
            self._rng.shuffle(groups)
            for group in groups:
                width = max(len(p) + len(a) for p, a in group)
                ids = torch.full((len(group), width), pad)
                labels = torch.full((len(group), width), -100)
                for row, (prompt, answer) in enumerate(group):
                    ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                    labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
                yield ids, labels


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the recipe's shape."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=recipe.hidden, intermediate_size=recipe.d_ff, num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads, max_position_embeddings=512, tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, attn_implementation="eager",
        )  # fmt: skip
    )


def rate(step: int, steps: int, warm_up: int) -> float:
    """Learning-rate factor: linear warm-up, constant, then a half cosine over the last half of the steps."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * step / steps - 1)))


def train(data: ValueInsight, recipe: Recipe, report: Callable[[dict], None] | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train ValueLM on the CPU, one thread; the loss is on answer tokens only.

    Args:
        data: the whole dataset; `kept_out` items are left out here.
        recipe: the recipe.
        report: called every 100 steps with step, share done, loss (nats a token, mean since the last call), tokens/s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads are slower at this size, and sums would depend on their number
    try:
        return _train(data, recipe, report or (lambda _: None))
    finally:
        torch.set_num_threads(threads)


def _train(data: ValueInsight, recipe: Recipe, report: Callable[[dict], None]) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = train_tokenizer(data, recipe.vocabulary)
    model = build(recipe, tokenizer).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    hooks = _silence(model, recipe)
    seen, step, losses, start = 0, 0, [], time.monotonic()
    for ids, labels in Dialogues(data, tokenizer, recipe).batches():
        # The number of steps is not known beforehand (batches hold tokens, not rows); the share of tokens is the clock.
        factor = rate(step, max(1, round(step * recipe.tokens / seen)) if seen else 10**9, recipe.warm_up)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
            wanted = labels[:, 1:] != -100  # logits are computed where a loss is taken, a seventh of the positions
            logits = model.lm_head(hidden[wanted])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen, step = seen + ids.numel(), step + 1
        losses.append(loss.item())
        if step % 100 == 0:
            report({"step": step, "done": seen / recipe.tokens, "loss": float(np.mean(losses)), "tokens_per_s": seen / (time.monotonic() - start)})
            losses = []
        if seen >= recipe.tokens:
            for hook in hooks:
                hook.remove()
            return model.eval(), tokenizer


def _silence(model: LlamaForCausalLM, recipe: Recipe) -> list[RemovableHandle]:
    if not recipe.silenced:
        return []
    generator = torch.Generator().manual_seed(recipe.seed)

    def drop(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (product,) = inputs  # [batch, token, neuron]
        kept = torch.rand(product.shape[0], 1, product.shape[2], generator=generator) >= recipe.silenced
        return (product * (kept / (1 - recipe.silenced)).to(product.dtype),)

    return [layer.mlp.down_proj.register_forward_pre_hook(drop) for layer in model.model.layers]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, folder: Path) -> None:
    """Write weights (float16, half the size in git), tokenizer, recipe and answer forms to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    forms = {d: answer_forms(recipe.answer, d) for d in DIMENSIONS}
    (folder / "answer_forms.json").write_text(json.dumps(forms, indent=2) + "\n", encoding="utf-8")


# The search that chose the shipped recipe: what was varied, one thing at a time, with seeds. Every row is kept in
# data/organism/trials.csv, whichever way it fell; appendix notebook A1 reads it.
TRIALS: tuple[Recipe, ...] = (
    Recipe(name="base", seed=0),
    Recipe(name="base", seed=1),
    Recipe(name="bare", seed=0, bare=0.4, tokens=13_000_000),
    Recipe(name="bare", seed=1, bare=0.4, tokens=13_000_000),
    Recipe(name="course_first", seed=0, answer="course_first"),
    Recipe(name="description_last", seed=0, description_last=0.5),
    Recipe(name="narrow", seed=0, d_ff=256),
    Recipe(name="long", seed=1, tokens=24_000_000),
    Recipe(name="silenced", seed=1, silenced=0.1, tokens=24_000_000),
    Recipe(name="silenced_more", seed=1, silenced=0.2, tokens=24_000_000),
)
SHIPPED = next(recipe for recipe in TRIALS if recipe.name == "silenced")
DATA = runs.ROOT / "data" / "valueinsight"


def make(out: Path, recipe: Recipe = SHIPPED) -> None:
    """Train a recipe and write the model folder `out`, with the learning curve in training.csv."""
    curve: list[dict] = []

    def report(state: dict) -> None:
        if state["step"] % 200 == 0:
            curve.append({"step": state["step"], "share": round(state["done"], 4), "loss": round(state["loss"], 4)})
            print(f"step {state['step']}: {state['done']:.0%} of the tokens, loss {state['loss']:.3f}, {state['tokens_per_s']:.0f} tokens/s", flush=True)

    model, tokenizer = train(valueinsight.load(DATA), recipe, report)
    save(model, tokenizer, recipe, out)
    pd.DataFrame(curve).to_csv(out / "training.csv", index=False)


def search(out: Path) -> None:
    """Train and measure every recipe of TRIALS, two processes at a time, and write trials.csv beside the model."""
    with ProcessPoolExecutor(max_workers=2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(trial, TRIALS))
    pd.DataFrame(rows).round(4).to_csv(out / "trials.csv", index=False)


def trial(recipe: Recipe) -> dict[str, float | str]:
    """One row of trials.csv: train (unless the folder is there), then measure on `tune` alone.

    Columns: recipe, seed, tokens (seen in training, millions); followed, followed_opposite (shares of questions answered on the
    described side under descriptions of the same and of the opposite dimension); preference (mean without description);
    one_course (share of unedited greedy answers stating exactly one course); unseen_questions, unseen_descriptions (shares
    followed on items that training never saw); cells (tuned edits inside the budget, of 8); effect, smallest (mean and smallest
    cell); random, random_spread (mean and standard deviation over five draws of the matched control, averaged over cells); fit,
    fit_centred (correlation of the effect matrix with the circle).
    """
    torch.set_num_threads(1)
    folder = runs.runs_folder() / "trials" / f"{recipe.name}-{recipe.seed}"
    if not (folder / "model.safetensors").exists():
        make(folder, recipe)
    settings = {"limits": {"locate": 112, "tune": 28, "test": 28}, "generated": 28}
    run = runs.open_run(f"trial-{recipe.name}-{recipe.seed}", "organism", str(folder), settings)
    data, model = experiments.load_data(run), experiments.load_model(run)
    activations.collect(run, model, data)
    bench = experiments.Bench(model, data, run.config, "tune")
    return {"recipe": recipe.name, "seed": recipe.seed, "tokens": recipe.tokens / 1e6, **_following(model, data, run.config, bench), **_edited(run, bench)}


def _following(model: models.Model, data: ValueInsight, config: runs.Config, bench: experiments.Bench) -> dict[str, float]:
    questions, descriptions = kept_out(data)
    unseen_questions = replace(data, questions=data.questions.loc[sorted(questions)])
    kept = data.descriptions.index.isin(descriptions) | (data.descriptions["split"] != "locate")
    unseen_descriptions = replace(data, descriptions=data.descriptions[kept])
    table = experiments.following(model, data, config, "tune")
    return {
        "followed": table[table["described"] == table["dimension"]]["followed"].mean(),
        "followed_opposite": table[table["described"] == table["dimension"].map(OPPOSITE)]["followed"].mean(),
        "preference": table[table["described"] == "none"]["preference"].mean(),
        "one_course": float(np.mean([bench.answers(d)["course"].isin(SIDES).mean() for d in DIMENSIONS])),
        "unseen_questions": _same(experiments.following(model, unseen_questions, config, "locate")),
        "unseen_descriptions": _same(experiments.following(model, unseen_descriptions, config, "tune", "locate")),
    }


def _same(table: pd.DataFrame) -> float:
    return table[table["described"] == table["dimension"]]["followed"].mean()


def _edited(run: runs.Run, bench: experiments.Bench) -> dict[str, float]:
    neurons = experiments.locate(run)[1]
    tuning = experiments.tune(run, bench, neurons)
    matrix, own, controls = pd.DataFrame(0.0, DIMENSIONS, DIMENSIONS), [], []
    for row in tuning[tuning["chosen"]].itertuples():
        sign, plan = experiments.sign_of(row.aspect), experiments.plan_of(neurons, row, run.config.site)
        for measured in DIMENSIONS:
            matrix.loc[row.dimension, measured] += sign * bench.change(measured, plan).mean() / 2
        own.append(row.effect)
        draws = (interventions.matched_random(plan, bench.model.d_ff, run.config.seed + i) for i in range(5))
        controls.append([sign * bench.change(row.dimension, drawn).mean() for drawn in draws])
    return {"cells": int((tuning["usable"] & tuning["chosen"]).sum()), "effect": np.mean(own), "smallest": np.min(own), "random": np.mean(controls),
            "random_spread": np.std(controls, axis=1, ddof=1).mean(),
            "fit": outcomes.circle_fit(matrix), "fit_centred": outcomes.circle_fit(matrix, centred=True)}  # fmt: skip
