"""Tiny random models of several architectures, a word-level tokenizer and a hand-made dataset; no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from valuelocate_utils.models import Model, wrap
from valuelocate_utils.schwartz import ASPECTS, DIMENSIONS
from valuelocate_utils.valueinsight import ValueInsight

HIDDEN, D_FF, LAYERS, VOCABULARY = 32, 64, 2, 64
SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<bot>")
PLAIN = ("User", "Assistant", ":", "?", ".", "Would", "you", "or", "I", "would", "surely", "yes", "no")
WORDS = [*SPECIAL, *PLAIN, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL) - len(PLAIN)))]
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=D_FF, num_hidden_layers=LAYERS, num_attention_heads=4,
    max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None,
)  # fmt: skip
CONFIGS: dict[str, Callable[[], t.PretrainedConfig]] = {
    "llama": lambda: t.LlamaConfig(**COMMON, num_key_value_heads=2),
    "qwen2": lambda: t.Qwen2Config(**COMMON, num_key_value_heads=2),
    "gemma2": lambda: t.Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_inner=D_FF, n_layer=LAYERS, n_head=4, n_positions=128, pad_token_id=0, eos_token_id=1, bos_token_id=None
    ),
    "neox": lambda: t.GPTNeoXConfig(**COMMON),
    "phi3": lambda: t.Phi3Config(**COMMON, num_key_value_heads=2),
}
FAMILIES = tuple(CONFIGS)
GATED = ("llama", "qwen2", "gemma2")  # families with a projection `up` of their own

# Each family's known modules in a layer: activation, down, up.
PATHS: dict[str, tuple[str, str, str | None]] = {
    "llama": ("layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj", "layers.{}.mlp.up_proj"),
    "qwen2": ("layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj", "layers.{}.mlp.up_proj"),
    "gemma2": ("layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj", "layers.{}.mlp.up_proj"),
    "gpt2": ("h.{}.mlp.act", "h.{}.mlp.c_proj", None),
    "neox": ("layers.{}.mlp.act", "layers.{}.mlp.dense_4h_to_h", None),
    "phi3": ("layers.{}.mlp.activation_fn", "layers.{}.mlp.down_proj", None),
}


def tokenizer(template: bool = True, pad: bool = True) -> t.PreTrainedTokenizerFast:
    """One id a word of WORDS; anything else is <unk>."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", additional_special_tokens=["<user>", "<bot>"], **({"pad_token": "<pad>"} if pad else {})
    )
    made.chat_template = TEMPLATE if template else None
    return made


def network(config: t.PretrainedConfig, seed: int = 0) -> t.PreTrainedModel:
    """A random model whose weights are large enough for its tokens and activations to differ."""
    torch.manual_seed(seed)
    hf = t.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
        hf.get_output_embeddings().weight.mul_(0.3)  # probabilities far from 0 and 1
    return hf.eval()


def model(family: str = "llama", template: bool = True, seed: int = 0, pad: bool = True) -> Model:
    """A wrapped tiny model; without `pad`, its tokenizer has no padding token of its own."""
    return wrap(network(CONFIGS[family](), seed), tokenizer(template, pad), name=f"tiny-{family}")


def prompts(lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    """Rows of random word ids (no special token)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(len(SPECIAL), VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@contextmanager
def plain_hook(made: Model, family: str, layer: int, site: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Call `change` on a site's activations through plain torch hooks; what it returns (unless None) replaces them."""
    activation, down, up = (path and made.hf.base_model.get_submodule(path.format(layer)) for path in PATHS[family])

    def before(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        new = change(inputs[0])
        return None if new is None else (new, *inputs[1:])

    if site == "product":
        handle = down.register_forward_pre_hook(before)
    else:
        handle = (activation if site == "gate" else up).register_forward_hook(lambda _m, _i, out: change(out))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def activations(made: Model, family: str, layer: int, site: str, ids: Sequence[int]) -> torch.Tensor:
    """All activations of one unpadded row, [token, neuron], through plain hooks."""
    seen: list[torch.Tensor] = []
    with plain_hook(made, family, layer, site, lambda a: seen.append(a.clone())):
        made.hf(input_ids=torch.tensor([list(ids)]))
    return seen[0][0]


@torch.no_grad()
def log_prob(made: Model, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """log p(answer | prompt) from one plain forward pass over the whole row."""
    logits = made.hf(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    log_p = logits.log_softmax(-1)
    return sum(log_p[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))


def dataset(per_dimension: int = 3) -> ValueInsight:
    """Questions of different lengths and two descriptions a cell, in the tokenizer's words; every question has courses of its own."""
    questions, descriptions = [], []
    for d, dimension in enumerate(DIMENSIONS):
        for n in range(per_dimension):
            a, b = 2 * (d * per_dimension + n) % 40, (2 * (d * per_dimension + n) + 1) % 40
            questions.append({
                "id": f"{dimension}.q{n}", "dimension": dimension, "split": "locate", "question": f"w{a} w{b}{' w44' * (3 * n)} ?",
                "expresses": f"w{a} w41 w42", "rejects": f"w{b} w43", "first": "expresses",
            })  # fmt: skip
        for s, aspect in enumerate(ASPECTS):
            for n in range(2):
                descriptions.append(
                    {"id": f"{dimension}.{aspect}.{n}", "dimension": dimension, "aspect": aspect, "split": "locate", "text": f"w{d} w{10 + s} w{20 + n} ."}
                )
    return ValueInsight(pd.DataFrame(descriptions).set_index("id"), pd.DataFrame(questions).set_index("id"), sha256="0" * 64)
