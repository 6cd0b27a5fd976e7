"""Cost of collecting statistics through nnsight, as ratios to a bare forward of the model's body.

Interleaved rounds on one machine, medians; run it with `make bench`. Three ways over the same batch: a bare forward, plain
forward hooks with the same statistics, and the suite's body trace.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from valuelocate_utils import activations, models, runs

ROUNDS = 7
SHAPES = {"1M": (128, 4, 512), "6M": (256, 6, 1024)}  # hidden, layers, d_ff


def build(hidden: int, layers: int, d_ff: int) -> models.Model:
    """A random Llama with the embedded model's tokenizer."""
    own = models.load(str(runs.ROOT / "data" / "organism"))
    config = LlamaConfig(vocab_size=len(own.tokenizer), hidden_size=hidden, intermediate_size=d_ff, num_hidden_layers=layers, num_attention_heads=4)
    torch.manual_seed(0)
    return models.wrap(LlamaForCausalLM(config), own.tokenizer)


def ways(model: models.Model) -> dict[str, Callable[[], object]]:
    """The three ways over 32 rows of 256 tokens, half of them response."""
    prompts, answers = [[5] * 128] * 32, [[7] * 129] * 32
    padded = models.pad([p + a[:-1] for p, a in zip(prompts, answers)], 0, "cpu")

    def bare() -> None:
        with torch.inference_mode():
            model.hf.base_model(**padded.inputs(), use_cache=False)

    def hooks() -> None:
        stats = {n: torch.zeros(model.n_layers, model.d_ff, dtype=torch.float64) for n in ("n_positive", "total", "total_sq")}
        stats["sample"] = torch.zeros(64, model.n_layers, model.d_ff)
        flat = torch.cat([torch.arange(128, 256) + 256 * row for row in range(32)])
        pick = (torch.arange(64), torch.arange(64))
        body = model.hf.base_model
        handles = [
            body.get_submodule(s.activation).register_forward_hook(lambda _m, _i, out, n=n: activations.accumulate(stats, n, out, flat, pick))
            for n, s in enumerate(model.sites)
        ]
        bare()
        for handle in handles:
            handle.remove()

    return {"bare forward": bare, "plain hooks": hooks, "body trace (ours)": lambda: activations.replay(model, prompts, answers, "gate", 32, 64)}


def main() -> None:
    """Print one line a model size and way: the ratio to the bare forward."""
    for size, shape in SHAPES.items():
        table = ways(build(*shape))
        times: dict[str, list[float]] = {name: [] for name in table}
        for _ in range(ROUNDS + 1):  # the first round warms up and is dropped
            for name, way in table.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
        base = times["bare forward"][1:]
        for name, spent in times.items():
            print(f"{size:>3}  {name:18s} {statistics.median(a / b for a, b in zip(spent[1:], base)):.2f}x")


if __name__ == "__main__":
    main()
