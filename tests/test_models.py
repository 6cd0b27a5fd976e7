"""models: loading, refusals, neuron sites, templates and padding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from valuelocate_utils import models
from valuelocate_utils.models import Model, ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model folder."""
    path = tmp_path / "tiny-llama"
    tiny.network(tiny.CONFIGS["llama"]()).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


# ------------------------------------------------------------------------------------------------------------------ sites
def test_sites_are_the_known_modules(family: tuple[str, Model]) -> None:
    name, model = family
    activation, down, up = tiny.PATHS[name]
    for layer, sites in enumerate(model.sites):
        assert (sites.activation, sites.down, sites.up) == (activation.format(layer), down.format(layer), up and up.format(layer))
    assert (model.n_layers, model.d_ff) == (tiny.LAYERS, tiny.D_FF)


@pytest.mark.parametrize("name", sorted(set(tiny.FAMILIES) - set(tiny.GATED)))
def test_up_is_refused_where_there_is_none(name: str) -> None:
    hf = tiny.network(tiny.CONFIGS[name]())
    with pytest.raises(ModelError, match="tiny-x.*no up projection"):
        models.wrap(hf, tiny.tokenizer(), name="tiny-x", site="up")


def test_gate_and_product_coincide_only_in_a_plain_mlp(family: tuple[str, Model]) -> None:
    name, model = family
    ids = tiny.prompts([6])[0]
    with torch.inference_mode(), model.body.trace(torch.tensor([ids])):
        gate, product = model.read(1, "gate").save(), model.read(1, "product").save()
    assert torch.equal(gate, product) == (name in ("gpt2", "neox"))
    assert torch.equal(product[0], tiny.activations(model, name, 1, "product", ids))


def test_write_replaces_what_the_model_computes_with(llama: Model) -> None:
    ids = torch.tensor([tiny.prompts([5])[0]])
    plain = llama.hf(ids).logits
    for site in ("gate", "up", "product"):
        with torch.inference_mode(), llama.body.trace(ids):
            llama.write(0, site, torch.zeros_like(llama.read(0, site)))
            hidden = llama.body.output.last_hidden_state.save()
        with tiny.plain_hook(llama, "llama", 0, site, torch.zeros_like):
            expected = llama.hf(ids).logits
        torch.testing.assert_close(llama.hf.lm_head(hidden), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(expected, plain, atol=1e-3)


@pytest.mark.parametrize("config", [
    t.LlamaConfig(**tiny.COMMON | {"intermediate_size": tiny.HIDDEN}),
    t.OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, max_position_embeddings=64),
])  # fmt: skip
def test_models_without_clear_sites_are_refused_by_family(config: t.PretrainedConfig) -> None:
    hf = tiny.network(config)
    with pytest.raises(ModelError, match=type(hf).__name__):
        models.resolve_sites(hf)


# ---------------------------------------------------------------------------------------------------------------- loading
def test_a_folder_loads_as_it_was_saved(folder: Path) -> None:
    model = models.load(str(folder))
    again = tiny.network(tiny.CONFIGS["llama"]())
    assert (model.name, model.revision, model.template, model.forms) == ("tiny-llama", "local", "own", None)
    assert model.weights_sha256 == models.weights_hash(again)
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())


def test_answer_forms_are_read(folder: Path) -> None:
    forms = {"conservation": {"expresses": ["a {course}"], "rejects": ["b {course}"]}}
    (folder / "answer_forms.json").write_text(json.dumps(forms), encoding="utf-8")
    assert models.load(str(folder)).forms == forms


def _without(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _mixture(folder: Path) -> None:
    t.MixtralConfig(**tiny.COMMON, num_key_value_heads=2, num_local_experts=4).save_pretrained(folder)


def _encoder_decoder(folder: Path) -> None:
    t.T5Config(vocab_size=64, d_model=32, d_ff=64, num_layers=2, num_heads=4).save_pretrained(folder)


@pytest.mark.parametrize("spoil, reason", [
    (lambda f: _without(f, "*.safetensors"), "no weights"),
    (lambda f: _without(f, "config.json"), "no config.json"),
    (lambda f: _without(f, "tokenizer*"), "cannot be loaded"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    (_truncated, "model.safetensors is damaged"),
    (_mixture, "mixture of experts"),
    (_encoder_decoder, "encoder-decoder"),
], ids=["no-weights", "no-config", "no-tokenizer", "broken-config", "truncated", "mixture", "encoder-decoder"])  # fmt: skip
def test_a_folder_that_cannot_serve_is_refused_by_name(folder: Path, spoil, reason: str) -> None:
    models.load(str(folder))
    spoil(folder)
    with pytest.raises(ModelError, match=reason) as error:
        models.load(str(folder))
    assert folder.name in str(error.value)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    """transformers would fill the gap with random numbers."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.gate_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=folder.name):
        models.load(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ModelError, match=folder.name):
        models.load(str(folder))


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent does not exist"):
        models.load(str(tmp_path / "absent"))


def test_a_hub_name_that_cannot_be_reached_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'nobody/absent-model' is neither a local folder nor in the hub's cache"):
        models.load("nobody/absent-model")


# ---------------------------------------------------------------------------------------------- tokenizer, template, hash
def test_chat_template_own_or_plain() -> None:
    own, plain = tiny.model(template=True), tiny.model(template=False)
    words = tiny.WORDS.index
    assert (own.template, plain.template) == ("own", "plain")
    assert models.encode(own, "w1 w2") == [words("<user>"), words("w1"), words("w2"), words("<bot>")]
    assert models.encode(plain, "w1 w2") == [words(w) for w in ("User", ":", "w1", "w2", "Assistant", ":")]
    assert models.encode_answer(plain, "w3 .") == models.encode_answer(own, "w3 .") == [words("w3"), words(".")]


def test_a_tokenizer_without_pad_token_gets_its_eos() -> None:
    without = models.wrap(tiny.network(tiny.CONFIGS["llama"]()), tiny.tokenizer(pad=False))
    assert without.tokenizer.pad_token_id == without.tokenizer.eos_token_id == tiny.WORDS.index("<eos>")
    assert tiny.model().tokenizer.pad_token_id == tiny.WORDS.index("<pad>")


@pytest.mark.parametrize("parameter", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_hash_sees_one_weight(parameter: str) -> None:
    hf = tiny.network(tiny.CONFIGS["llama"]())
    before = models.weights_hash(hf)
    assert models.weights_hash(tiny.network(tiny.CONFIGS["llama"]())) == before
    with torch.no_grad():
        hf.get_parameter(parameter).view(-1)[-1] += 1e-6 + hf.get_parameter(parameter).view(-1)[-1].abs() * 1e-6
    assert models.weights_hash(hf) != before


# ---------------------------------------------------------------------------------------------------------------- padding
def test_pad_left_and_right() -> None:
    left, right = models.pad([[5, 6, 7], [8]], 9, "cpu"), models.pad([[5, 6, 7], [8]], 9, "cpu", side="right")
    assert left.ids.tolist() == [[5, 6, 7], [9, 9, 8]] and right.ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert left.mask.tolist() == [[1, 1, 1], [0, 0, 1]] and right.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert right.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_hidden_state(family: tuple[str, Model], side: str) -> None:
    _, model = family
    rows = tiny.prompts([3, 9, 6])
    padded = models.pad(rows, model.tokenizer.pad_token_id, "cpu", side=side)
    hidden = model.hf.base_model(**padded.inputs()).last_hidden_state
    for row, tokens in enumerate(rows):
        alone = model.hf.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(hidden[row][padded.mask[row].bool()], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("lengths, size", [([3, 1, 4, 1, 5, 9, 2], 3), ([2, 2], 5), ([7], 1), ([], 4), ([1, 2, 3, 4], 2)])
def test_length_batches_cover_all_once_longest_first(lengths: list[int], size: int) -> None:
    batches = models.length_batches(lengths, size)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert all(0 < len(batch) <= size for batch in batches) and len(batches) == -(-len(lengths) // size)
