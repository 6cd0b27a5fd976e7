"""activations: answering, replaying, and shards in a run folder."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
import transformers as t

from valuelocate_utils import activations, models, runs
from valuelocate_utils.models import Model
from valuelocate_utils.schwartz import ASPECTS, DIMENSIONS
from valuelocate_utils.valueinsight import ValueInsight

PROMPTS, ANSWERS = tiny.prompts([7, 3, 11, 5, 4]), tiny.prompts([4, 6, 1, 9, 3], seed=2)
SITES = [(name, "gate") for name in tiny.FAMILIES] + [("llama", "up"), ("llama", "product"), ("gpt2", "product"), ("phi3", "product")]


def hooked(model: Model, family: str, site: str, prompts=PROMPTS, answers=ANSWERS) -> torch.Tensor:
    """Brute force: activations of all response tokens but each answer's last, [token, layer, neuron], one row at a time."""
    return torch.cat([
        torch.stack([tiny.activations(model, family, layer, site, [*p, *a])[len(p) : -1] for layer in range(model.n_layers)], 1) for p, a in zip(prompts, answers)
    ])  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- replay
@pytest.mark.parametrize("family, site", SITES)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_replay_equals_plain_hooks_however_batched(family: str, site: str, batch_size: int) -> None:
    model = tiny.model(family)
    stats = activations.replay(model, PROMPTS, ANSWERS, site, batch_size, sample=1000)
    brute = hooked(model, family, site)
    assert stats["n_tokens"].tolist() == [len(brute)] == [sum(len(a) - 1 for a in ANSWERS)]
    assert torch.equal(stats["n_positive"], (brute > 0).sum(0))
    # A padded batch sums floats in another order: single rows are equal to 1e-6, batches to 1e-5 of the size.
    scale = brute.double().abs().sum(0).clamp(min=1)
    tolerance = 1e-6 if batch_size == 1 else 1e-5
    assert ((stats["total"] - brute.double().sum(0)).abs() <= tolerance * scale).all()
    squares = brute.double().square().sum(0)
    assert ((stats["total_sq"] - squares).abs() <= tolerance * squares.clamp(min=1)).all()
    torch.testing.assert_close(stats["sample"], brute, rtol=1e-4, atol=2e-5)


def test_sites_of_one_layer_differ_and_product_is_gate_times_up(llama: Model) -> None:
    gate, up, product = (activations.replay(llama, PROMPTS, ANSWERS, s, 1, 1000)["sample"] for s in ("gate", "up", "product"))
    torch.testing.assert_close(gate * up, product, rtol=0, atol=1e-5)
    assert not torch.allclose(gate, up) and not torch.allclose(gate, product)


def test_gemma_keeps_its_own_gelu() -> None:
    model = tiny.model("gemma2")
    inner = model.hf.model.layers[0].mlp.gate_proj
    seen: list[torch.Tensor] = []
    handle = inner.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    model.hf(torch.tensor([PROMPTS[0] + ANSWERS[0]]))
    handle.remove()
    before = seen[0][len(PROMPTS[0]) : -1]
    total = activations.replay(model, PROMPTS[:1], ANSWERS[:1], "gate", 1, 8)["total"][0].float()
    torch.testing.assert_close(total, torch.nn.functional.gelu(before, approximate="tanh").sum(0), rtol=0, atol=1e-5)
    assert (total - torch.nn.functional.silu(before).sum(0)).abs().max() > 0.05


def bit_model() -> Model:
    """A Llama in which neuron j of every layer is active exactly at tokens whose id has bit j set (j < 6)."""
    hf = tiny.network(t.LlamaConfig(**tiny.COMMON, num_key_value_heads=2))
    ids = torch.arange(tiny.VOCABULARY)
    with torch.no_grad():
        embedding = torch.ones(tiny.VOCABULARY, tiny.HIDDEN)
        embedding[:, :6] = torch.where((ids[:, None] >> torch.arange(6)) & 1 == 1, 1.0, -1.0)
        hf.model.embed_tokens.weight.copy_(embedding)
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.mlp.gate_proj.weight.zero_()
            layer.mlp.gate_proj.weight[torch.arange(6), torch.arange(6)] = 1.0
    return models.wrap(hf, tiny.tokenizer(), name="bits")


def test_response_mask_covers_the_answer_but_its_last_token() -> None:
    model = bit_model()
    prompts, answers = [[63, 63, 63], [7]], [[32, 33, 40, 63], [8, 63]]  # the counted inputs are 32, 33, 40 and 8
    stats = activations.replay(model, prompts, answers, "gate", 8, 8)
    counted = [32, 33, 40, 8]
    expected = [sum(token >> j & 1 for token in counted) for j in range(6)] + [0] * (tiny.D_FF - 6)
    assert expected[:6] == [1, 0, 0, 2, 0, 3]
    assert stats["n_tokens"].tolist() == [4]
    assert stats["n_positive"].tolist() == [expected] * 2


@pytest.mark.parametrize("answers, tokens", [([[40], [41]], 0), ([[], [41, 42]], 1), ([[], []], 0)])
def test_answers_of_one_token_or_none_add_nothing(llama: Model, answers: list[list[int]], tokens: int) -> None:
    stats = activations.replay(llama, PROMPTS[:2], answers, "gate", 4, 3)
    assert stats["n_tokens"].tolist() == [tokens]
    assert stats["sample"].shape == (tokens, tiny.LAYERS, tiny.D_FF)
    if tokens == 0:
        assert all(not tensor.any() for tensor in stats.values())
    else:
        assert torch.equal(stats["n_positive"], (hooked(llama, "llama", "gate", PROMPTS[1:2], answers[1:]) > 0).sum(0))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sample_holds_response_tokens_without_repetition(llama: Model, batch_size: int) -> None:
    everything = activations.replay(llama, PROMPTS, ANSWERS, "gate", batch_size, 1000)["sample"]
    seen: Counter[int] = Counter()
    for seed in range(25):
        sample = activations.replay(llama, PROMPTS, ANSWERS, "gate", batch_size, 6, seed)["sample"]
        equal = (sample[:, None] == everything[None]).all(-1).all(-1)
        assert equal.sum(1).tolist() == [1] * 6  # each is one known token, in both layers
        assert equal.sum(0).max() == 1
        seen.update(equal.nonzero()[:, 1].tolist())
    assert set(seen) == set(range(len(everything)))  # none is out of reach


def test_sample_is_decided_by_the_seed_and_not_by_batches(llama: Model) -> None:
    one, two, other = (activations.replay(llama, PROMPTS, ANSWERS, "gate", size, 6, seed)["sample"] for size, seed in ((1, 3), (4, 3), (1, 4)))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert not torch.allclose(one, other, atol=1e-2)


def test_replay_equals_the_activations_of_decoding(family: tuple[str, Model]) -> None:
    name, model = family
    for prompt in PROMPTS[:2]:
        given = activations.answer(model, [prompt], 8, 1)[0]
        steps: list[list[torch.Tensor]] = [[], []]
        with tiny.plain_hook(model, name, 0, "gate", lambda a: steps[0].append(a[0])), tiny.plain_hook(model, name, 1, "gate", lambda a: steps[1].append(a[0])):
            model.hf.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=8, do_sample=False)
        assert len(given.ids) > 1
        decoded = torch.stack([torch.cat(layer[1:]) for layer in steps], 1)  # step 0 is the prompt
        stats = activations.replay(model, [prompt], [given.ids], "gate", 1, 1000)
        torch.testing.assert_close(stats["sample"], decoded, rtol=0, atol=1e-5)
        assert torch.equal(stats["n_positive"], (decoded > 0).sum(0))


# ----------------------------------------------------------------------------------------------------------------- answer
@pytest.mark.parametrize("penalty", [1.0, 1.1])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_answers_are_the_same_batched_and_one_by_one(family: str, pad: bool, penalty: float) -> None:
    """Without a padding token of its own transformers cannot guess the attention mask."""
    model = tiny.model(family, pad=pad)
    batched = activations.answer(model, PROMPTS, 8, 5, penalty)
    assert [a.ids for a in batched] == [activations.answer(model, [p], 8, 1, penalty)[0].ids for p in PROMPTS]
    assert len({tuple(a.ids) for a in batched}) > 1


def test_answers_equal_a_hand_made_greedy_loop(llama: Model) -> None:
    for prompt, given in zip(PROMPTS, activations.answer(llama, PROMPTS, 6, 2)):
        row = list(prompt)
        while len(row) < len(prompt) + 6 and (len(row) == len(prompt) or row[-1] != 1):
            row.append(int(llama.hf(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        assert given.ids == row[len(prompt) :]
        assert given.text == " ".join(tiny.WORDS[i] for i in given.ids if i not in (0, 1, 2, 3, 4))


def test_an_answer_ends_with_its_end_of_sequence() -> None:
    """Padding behind the end belongs to no answer; `generate` stands for a model that stops at different times."""
    model = tiny.model()
    rows = {3: [20, 21, 1, 0, 0], 5: [22, 1, 0, 0, 0], 4: [23, 24, 25, 26, 27]}

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([rows[int(n)] for n in attention_mask.sum(1)])], 1)

    given = activations.answer(model, tiny.prompts([3, 5, 4]), 5, 3, generate=generate)
    assert [a.ids for a in given] == [[20, 21, 1], [22, 1], [23, 24, 25, 26, 27]]
    assert given[0].text == f"{tiny.WORDS[20]} {tiny.WORDS[21]}"


# ------------------------------------------------------------------------------------------------------------------ texts
QUESTION = pd.Series({"expresses": "take the new job", "rejects": "stay at home"})


@pytest.mark.parametrize("text, course", [
    ("I would take the new job.", "expresses"),
    ("I'd Stay at HOME, of course!", "rejects"),
    ("Take the new job or stay at home?", "both"),
    ("take the job", "neither"),
    ("I would stay at homes", "neither"),
    ("I would mistake the new job", "neither"),
    ("take, the - new job", "expresses"),
    ("", "neither"),
])  # fmt: skip
def test_stated_course(text: str, course: str) -> None:
    assert activations.stated_course(text, QUESTION) == course
    assert activations.degenerate(text, QUESTION, "choice") == (course in ("both", "neither"))
    assert activations.degenerate(text, QUESTION, "open") == (text == "")


@pytest.mark.parametrize("text, loops", [
    ("", True),
    (" ?! ...", True),
    ("no", False),
    ("no no no no", False),
    ("no no no no no", True),
    ("Well: No, no. NO no no", True),
    ("a b c d a b c d", False),
    ("a b c d a b c d a b c d", True),
    ("a b c d x a b c d y a b c d z", True),
    ("a b c a b c a b c", False),  # each run of four comes twice
    ("a b c a b c a b c a b c", True),
])  # fmt: skip
def test_repetitive(text: str, loops: bool) -> None:
    assert activations.repetitive(text) == loops
    assert activations.degenerate(text, QUESTION, "open") == loops


def test_a_looping_answer_is_degenerate_though_it_states_a_course() -> None:
    assert activations.degenerate("stay at home " * 5, QUESTION, "choice")


# ----------------------------------------------------------------------------------------------------------------- shards
LIMITS = {"locate": None, "tune": None, "test": None}


@pytest.fixture(scope="module")
def data() -> ValueInsight:
    """Three questions a dimension: with shards of two, blocks of two and of one."""
    return tiny.dataset(3)


def make_run(folder: Path, data: ValueInsight, **settings: object) -> runs.Run:
    """A run folder with a manifest, as notebook 01 leaves it."""
    config = runs.Config(preset="tiny", **{"max_new_tokens": 5, "batch_size": 2, "shard_size": 2, "sample_tokens": 3, "limits": LIMITS} | settings)
    run = runs.Run("tiny", folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    run.path("manifest.json").write_text(json.dumps({"dataset_sha256": data.sha256, "stages": {}}), encoding="utf-8")
    return run


def test_both_aspects_of_a_dimension_share_their_blocks(data: ValueInsight, tmp_path: Path) -> None:
    made = list(activations.blocks(data, make_run(tmp_path, data).config))
    assert len(made) == 16 and len({b.path for b in made}) == 16
    by_key = {(b.dimension, b.aspect, b.k): b for b in made}
    for dimension in DIMENSIONS:
        pairs = [(by_key[dimension, ASPECTS[0], k], by_key[dimension, ASPECTS[1], k]) for k in range(2)]
        assert all(list(a.questions.index) == list(b.questions.index) for a, b in pairs)
        assert [q for a, _ in pairs for q in a.questions.index] == list(data.select(dimension, "locate").index)
    for block in made:
        assert list(block.description_ids.index) == list(block.questions.index)
        assert set(block.description_ids) <= set(data.personas(block.dimension, block.aspect, "locate").index)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory, data: ValueInsight) -> tuple[runs.Run, Model, list[str]]:
    """A collected run; tests that change it must use `copied`."""
    run, model = make_run(tmp_path_factory.mktemp("run"), data), tiny.model()
    return run, model, activations.collect(run, model, data)


@pytest.fixture
def copied(collected: tuple[runs.Run, Model, list[str]], tmp_path: Path) -> tuple[runs.Run, Model]:
    """A copy of the collected run, to damage."""
    run, model, _ = collected
    for path in run.folder.rglob("*"):
        if path.is_file():
            to = tmp_path / path.relative_to(run.folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    return runs.Run("tiny", tmp_path, run.config), model


def shards_of(run: runs.Run) -> dict[str, bytes]:
    return {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in run.folder.glob("shards/*/*")}


def test_collect_writes_answers_and_the_shards_that_belong_to_them(collected, data: ValueInsight) -> None:
    run, model, paths = collected
    assert sorted(paths) == sorted(shards_of(run)) and len(paths) == 16
    for block in activations.blocks(data, run.config):
        rows = {row["question_id"]: row for row in run.read_answers(block.dimension, block.aspect)}
        texts = data.descriptions.loc[block.description_ids, "text"]
        prompts = [  # description, blank line, question, both courses
            models.encode(model, f"{text}\n\n{q.question} Would you {q.expresses} or {q.rejects}?") for (_, q), text in zip(block.questions.iterrows(), texts)
        ]
        given = [activations.answer(model, [p], 5, 1)[0] for p in prompts]
        for (qid, q), answer in zip(block.questions.iterrows(), given):
            assert rows[qid] == {
                "question_id": qid, "description_id": block.description_ids[qid], "answer": answer.text, "n_tokens": len(answer.ids),
                "degenerate": activations.degenerate(answer.text, q, "choice"),
            }  # fmt: skip
        stats = activations.read_shard(run, block.path)
        brute = hooked(model, "llama", "gate", prompts, [a.ids for a in given])
        assert stats["n_tokens"].tolist() == [len(brute)]
        assert torch.equal(stats["n_positive"], (brute > 0).sum(0))


def test_answers_of_a_cell_hold_every_question_once(collected, data: ValueInsight) -> None:
    run, _, _ = collected
    for dimension in DIMENSIONS:
        for aspect in ASPECTS:
            assert [r["question_id"] for r in run.read_answers(dimension, aspect)] == list(data.select(dimension, "locate").index)


def test_cell_shards_come_in_block_order(collected, data: ValueInsight) -> None:
    run, _, _ = collected
    shards = activations.cell_shards(run, "conservation", "negative")
    for k, shard in enumerate(shards):
        assert torch.equal(shard["total"], activations.read_shard(run, f"shards/conservation.negative/{k}.safetensors")["total"])
    assert len(shards) == 2


def test_blocks_beyond_nine_keep_their_order(collected, tmp_path: Path, data: ValueInsight) -> None:
    run = make_run(tmp_path, data)
    for k in range(12):
        run.write_tensors(f"shards/conservation.positive/{k}.safetensors", {"n_tokens": torch.tensor([k])}, {})
    assert [s["n_tokens"].item() for s in activations.cell_shards(run, "conservation", "positive")] == list(range(12))


def test_a_second_collect_makes_nothing(copied, data: ValueInsight) -> None:
    run, model = copied
    before, made = shards_of(run), []
    activations.collect(run, model, data, on_shard=made.append)
    assert made == [] and shards_of(run) == before


@pytest.mark.parametrize("k", [0, 1])
def test_a_deleted_shard_alone_is_made_again(copied, data: ValueInsight, k: int) -> None:
    run, model = copied
    before, answers = shards_of(run), run.path("answers/conservation.negative.jsonl").read_bytes()
    gone = f"shards/conservation.negative/{k}.safetensors"
    run.path(gone).unlink()
    made: list[activations.Block] = []
    activations.collect(run, model, data, on_shard=made.append)
    assert [b.path for b in made] == [gone]
    assert shards_of(run) == before
    assert run.path("answers/conservation.negative.jsonl").read_bytes() == answers


def test_an_interrupted_collect_goes_on(tmp_path: Path, data: ValueInsight, collected) -> None:
    run, model = make_run(tmp_path, data), collected[1]

    def stop(block: activations.Block) -> None:
        if block.path == "shards/self_transcendence.positive/0.safetensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activations.collect(run, model, data, on_shard=stop)
    assert len(shards_of(run)) == 5
    activations.collect(run, model, data)
    assert shards_of(run) == shards_of(collected[0])
    for path in run.folder.glob("answers/*"):
        assert path.read_bytes() == collected[0].path(f"answers/{path.name}").read_bytes()


@pytest.mark.parametrize("setting", [
    {"seed": 1}, {"max_new_tokens": 6}, {"repetition_penalty": 1.1}, {"site": "product"}, {"rendering": "open"}, {"shard_size": 1}, {"sample_tokens": 4},
    {"limits": LIMITS | {"locate": 2}}, {"dtype": "bfloat16"},
], ids=lambda s: next(iter(s)))  # fmt: skip
def test_shards_of_other_settings_are_refused(copied, data: ValueInsight, setting: dict) -> None:
    run, model = copied
    other = make_run(run.folder, data, **setting)
    with pytest.raises(runs.RunError, match=r"shards/openness_to_change.positive/0.safetensors was made with another"):
        activations.collect(other, model, data)


def test_shards_of_another_model_or_dataset_are_refused(copied, data: ValueInsight) -> None:
    run, model = copied
    with pytest.raises(runs.RunError, match="0.safetensors was made with another"):
        activations.collect(run, tiny.model(seed=1), data)
    run.note(dataset_sha256="1" * 64)
    with pytest.raises(runs.RunError, match="0.safetensors was made with another"):
        activations.collect(run, model, data)


def test_another_chat_template_is_another_run(copied, data: ValueInsight) -> None:
    """The weights are the same, the prompts are not."""
    run, _ = copied
    with pytest.raises(runs.RunError, match="0.safetensors was made with another"):
        activations.collect(run, tiny.model(template=False), data)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard_is_named(copied, data: ValueInsight, keep: int) -> None:
    run, model = copied
    path = run.path("shards/conservation.negative/1.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    for read in (lambda: activations.collect(run, model, data), lambda: activations.cell_shards(run, "conservation", "negative")):
        with pytest.raises(runs.RunError, match="conservation.negative/1.safetensors is damaged") as error:
            read()
        assert str(run.folder) not in str(error.value)


def test_a_missing_shard_names_its_notebook(copied) -> None:
    with pytest.raises(runs.RunError, match="conservation.positive.*02_activations"):
        activations.cell_shards(replace(copied[0], folder=copied[0].folder / "empty"), "conservation", "positive")
