"""Answering under descriptions, replaying answers through a trace, and the shards that keep their statistics.

A shard is one block of questions of one dimension under one aspect: what a crash loses at most, and what the statistics resample.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from . import runs
from .models import Model, Site, encode, length_batches, pad
from .schwartz import ASPECTS, DIMENSIONS
from .valueinsight import SIDES, Rendering, ValueInsight, draw_descriptions, render

SHARD_FORMAT = 1  # raise it when the meaning of a shard's tensors changes: older shards are then refused


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, and its ids including the end-of-sequence token if one was generated."""

    text: str
    ids: list[int]


@torch.inference_mode()
def answer(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int, repetition_penalty: float = 1.0,
    generate: Callable[..., torch.Tensor] | None = None,
) -> list[Answer]:  # fmt: skip
    """Greedy answers to prompts (ids), in the order given.

    `generate` replaces `model.hf.generate`; an edited model's goes here (`interventions.edited`).
    """
    generate = generate or model.hf.generate
    ends = model.hf.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    answers: dict[int, Answer] = {}
    for batch in length_batches([len(p) for p in prompts], batch_size):
        padded = pad([prompts[i] for i in batch], model.tokenizer.pad_token_id, model.hf.device)
        ids = generate(
            input_ids=padded.ids, attention_mask=padded.mask, max_new_tokens=max_new_tokens, do_sample=False,
            repetition_penalty=repetition_penalty, pad_token_id=model.tokenizer.pad_token_id,
        )  # fmt: skip
        for i, row in zip(batch, ids[:, padded.ids.shape[1] :].tolist()):
            stop = next((n + 1 for n, token in enumerate(row) if token in ends), len(row))
            answers[i] = Answer(model.tokenizer.decode(row[:stop], skip_special_tokens=True).strip(), row[:stop])
    return [answers[i] for i in range(len(prompts))]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.casefold())


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))


def stated_course(text: str, question: pd.Series) -> str:
    """Which course an answer states in the question's own words: `expresses`, `rejects`, `both` or `neither`."""
    words = _words(text)
    stated = [side for side in SIDES if _contains(words, _words(question[side]))]
    return stated[0] if len(stated) == 1 else ("both" if stated else "neither")


def repetitive(text: str) -> bool:
    """Whether an answer is empty or loops: a run of four words three times, or one word five times in a row."""
    words = _words(text)
    if not words:
        return True
    fours = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    fives = any(len(set(words[i : i + 5])) == 1 for i in range(len(words) - 4))
    return fives or max(fours.values(), default=0) >= 3


def degenerate(text: str, question: pd.Series, rendering: Rendering) -> bool:
    """An answer that answers nothing: empty or looping; where the prompt names the courses, also one that does not state
    exactly one of them. Degenerate answers are counted, never dropped or asked for again."""
    return repetitive(text) or (rendering == "choice" and stated_course(text, question) not in SIDES)


def replay(
    model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], site: Site, batch_size: int, sample: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Statistics of a site's activations over response tokens, from one teacher-forced pass through an nnsight body trace.

    The response mask covers the answer's tokens as inputs, that is all but the last one, which decoding never feeds back
    (Su et al. 2025, section 3.2: generated tokens only). Nothing larger than [layer, neuron] leaves the trace.

    Args:
        prompts, answers: ids; an answer's first token follows its prompt's last.
        sample: response tokens drawn uniformly, without replacement, for the percentiles.

    Returns:
        n_tokens [1] int64; n_positive [layer, neuron] int64; total, total_sq [layer, neuron] float64;
        sample [min(sample, n_tokens), layer, neuron] float32.
    """
    shape, device = (model.n_layers, model.d_ff), model.hf.device
    counts = [max(0, len(a) - 1) for a in answers]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(sum(counts), generator=generator)[:sample].sort().values
    starts = torch.tensor([0, *counts]).cumsum(0)
    stats = {
        "n_tokens": torch.tensor([sum(counts)]),
        "n_positive": torch.zeros(shape, dtype=torch.float64, device=device),
        "total": torch.zeros(shape, dtype=torch.float64, device=device),
        "total_sq": torch.zeros(shape, dtype=torch.float64, device=device),
        "sample": torch.zeros(len(chosen), *shape, device=device),
    }
    rows = [list(p) + list(a[:-1]) for p, a in zip(prompts, answers)]
    for batch in length_batches([len(r) for r in rows], batch_size):
        padded = pad([rows[i] for i in batch], model.tokenizer.pad_token_id, device)
        # Flat positions of the batch's response tokens, and for each its number in the block.
        flat = torch.cat([torch.arange(padded.ids.shape[1] - counts[i], padded.ids.shape[1]) + n * padded.ids.shape[1] for n, i in enumerate(batch)])
        number = torch.cat([torch.arange(counts[i]) + starts[i] for i in batch])
        if len(flat) == 0:
            continue
        at = torch.searchsorted(chosen, number).clamp(max=max(0, len(chosen) - 1))
        hit = (chosen[at] == number) if len(chosen) else torch.zeros(len(number), dtype=torch.bool)
        pick = (torch.nonzero(hit)[:, 0].to(device), at[hit].to(device))
        with torch.inference_mode():
            with model.body.trace(**padded.inputs(), use_cache=False):
                for layer in range(model.n_layers):
                    accumulate(stats, layer, model.read(layer, site), flat.to(device), pick)
    stats["n_positive"] = stats["n_positive"].round().long()
    return {name: tensor.cpu() for name, tensor in stats.items()}


def accumulate(stats: dict[str, torch.Tensor], layer: int, site: torch.Tensor, flat: torch.Tensor, pick: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Add one batch's activations [batch, token, neuron] to a layer's statistics, in place; called inside the trace.

    Args:
        flat: positions of response tokens in the flattened [batch * token].
        pick: (index into `flat`, row of `sample`) of the tokens kept for the percentiles.
    """
    rows = site.reshape(-1, site.shape[-1])[flat].double()
    ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    stats["n_positive"][layer] += ones @ (rows > 0).double()
    stats["total"][layer] += ones @ rows
    stats["total_sq"][layer] += ones @ rows.square()
    stats["sample"][pick[1], layer] = rows[pick[0]].float()


@dataclass(frozen=True)
class Block:
    """The questions of one shard and the descriptions that go with them."""

    dimension: str
    aspect: str
    k: int
    questions: pd.DataFrame
    description_ids: pd.Series

    @property
    def path(self) -> str:
        """The shard's place in the run folder."""
        return f"shards/{self.dimension}.{self.aspect}/{self.k}.safetensors"


def blocks(data: ValueInsight, config: runs.Config, split: str = "locate") -> Iterator[Block]:
    """Every block of the run. Both aspects of a dimension have the same questions in the same blocks: they are pairs."""
    for dimension in DIMENSIONS:
        questions = data.select(dimension, split, config.limits[split])
        for aspect in ASPECTS:
            drawn = draw_descriptions(questions, data.personas(dimension, aspect, split), config.seed)
            for k, start in enumerate(range(0, len(questions), config.shard_size)):
                part = questions.iloc[start : start + config.shard_size]
                yield Block(dimension, aspect, k, part, drawn[part.index])


def collect(run: runs.Run, model: Model, data: ValueInsight, on_shard: Callable[[Block], None] | None = None) -> list[str]:
    """Answer and replay every block whose shard is not there yet; returns the paths of all shards.

    A block's answers are written before its shard, so a block with a shard has its answers. Stopping at any moment loses
    one block at most.
    """
    config, paths = run.config, []
    print_of = fingerprint(run, model)
    answers: dict[tuple[str, str], list[dict]] = {}
    rank = {question_id: n for n, question_id in enumerate(data.questions.index)}
    for block in runs.progress(list(blocks(data, config)), "shards"):
        cell = (block.dimension, block.aspect)
        if cell not in answers:
            answers[cell] = run.read_answers(*cell, missing_ok=True)
        paths.append(block.path)
        if run.path(block.path).exists():
            read_shard(run, block.path, print_of)
            continue
        texts = data.descriptions.loc[block.description_ids, "text"]
        prompts = [encode(model, render(q, text, config.rendering)) for (_, q), text in zip(block.questions.iterrows(), texts)]
        given = answer(model, prompts, config.max_new_tokens, config.batch_size, config.repetition_penalty)
        done = set(block.questions.index)
        answers[cell] = [row for row in answers[cell] if row["question_id"] not in done] + [
            {"question_id": qid, "description_id": block.description_ids[qid], "answer": a.text, "n_tokens": len(a.ids),
             "degenerate": degenerate(a.text, q, config.rendering)}
            for (qid, q), a in zip(block.questions.iterrows(), given)
        ]  # fmt: skip
        run.write_answers(*cell, sorted(answers[cell], key=lambda row: rank[row["question_id"]]))
        stats = replay(model, prompts, [a.ids for a in given], config.site, config.batch_size, config.sample_tokens, config.seed + block.k)
        run.write_tensors(block.path, stats, {"fingerprint": print_of})
        if on_shard:
            on_shard(block)
    return paths


def fingerprint(run: runs.Run, model: Model) -> str:
    """What a shard depends on: weights, tokenizer, template, dataset and the settings that touch answers or statistics."""
    config, tokenizer = run.config, model.tokenizer
    parts = [SHARD_FORMAT, model.weights_sha256, tokenizer.chat_template, sorted(tokenizer.get_vocab().items()), run.manifest["dataset_sha256"], config.site, config.rendering, config.max_new_tokens,
             config.repetition_penalty, config.shard_size, config.sample_tokens, config.seed, config.dtype, config.limits["locate"]]  # fmt: skip
    return runs.digest_of(parts)


def read_shard(run: runs.Run, path: str, expected: str | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a shard (see `replay`).

    Raises:
        RunError: the shard is missing, damaged, or was made with other settings than this run's.
    """
    full = run.need(path, "02_activations")
    try:
        with safe_open(full, framework="pt") as file:
            made_with = (file.metadata() or {}).get("fingerprint")
            stats = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise runs.RunError(f"shard {run.relative(full)} is damaged ({runs.reason_of(error, full)}): delete it and run `make run` again; only this shard is made anew") from None
    if expected is not None and made_with != expected:
        raise runs.RunError(
            f"shard {run.relative(full)} was made with another model, dataset or settings: choose another RUN=, or delete its shards folder"
        )
    return stats


def cell_shards(run: runs.Run, dimension: str, aspect: str) -> list[dict[str, torch.Tensor]]:
    """All shards of one (dimension, aspect), in block order."""
    folder = run.need(f"shards/{dimension}.{aspect}", "02_activations")
    return [read_shard(run, f"shards/{dimension}.{aspect}/{path.name}") for path in sorted(folder.glob("*.safetensors"), key=lambda p: int(p.stem))]
