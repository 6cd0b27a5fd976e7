"""Loading a decoder model for tracing, resolving its neuron sites, prompts and padding.

A neuron is one coordinate of a layer's MLP activation. Its site is `gate` (output of the activation module, the paper's),
`up` (output of the parallel projection, where there is one) or `product` (input of the down projection).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from nnsight import TransformersModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

Site = Literal["gate", "up", "product"]

# Used only where a tokenizer brings no chat template; the manifest says so.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m['role'] == 'user' else 'Assistant: ' }}{{ m['content'] }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class ModelError(RuntimeError):
    """A model that cannot be loaded or has no neurons of the wanted kind; the message says why and what to do."""


@dataclass(frozen=True)
class LayerSites:
    """Module paths of one layer's neuron sites, relative to the model's body; `up` is None in a plain MLP."""

    activation: str
    down: str
    up: str | None


@dataclass
class Model:
    """A loaded model: the transformers module, its nnsight wrapper, tokenizer and sites."""

    hf: PreTrainedModel
    tracer: TransformersModel
    tokenizer: PreTrainedTokenizerBase
    sites: tuple[LayerSites, ...]
    name: str
    revision: str
    weights_sha256: str
    template: Literal["own", "plain"]
    forms: dict[str, dict[str, list[str]]] | None  # answer forms by dimension and side, where the folder ships them

    @property
    def n_layers(self) -> int:
        """Number of transformer layers."""
        return len(self.sites)

    @property
    def d_ff(self) -> int:
        """Neurons a layer: the width of the MLP's inside."""
        return _width(self.hf.base_model.get_submodule(self.sites[0].down))[0]

    @property
    def body(self) -> Any:
        """The nnsight envoy of the model without its language-model head."""
        return getattr(self.tracer, self.hf.base_model_prefix)

    def envoy(self, layer: int, site: Site) -> Any:
        """The nnsight envoy whose value holds the site's activations [batch, token, neuron] (see `read` and `write`)."""
        paths = self.sites[layer]
        path = {"gate": paths.activation, "up": paths.up, "product": paths.down}[site]
        if path is None:
            raise ModelError(f"{self.name} has no up projection beside its gate: use site gate (or product, the same here)")
        return self.body.get(path)

    def read(self, layer: int, site: Site) -> torch.Tensor:
        """Inside a trace: the activations of a layer's site, [batch, token, neuron]."""
        envoy = self.envoy(layer, site)
        return envoy.input if site == "product" else envoy.output

    def write(self, layer: int, site: Site, value: torch.Tensor) -> None:
        """Inside a trace: replace the activations of a layer's site."""
        envoy = self.envoy(layer, site)
        if site == "product":
            envoy.input = value
        else:
            envoy.output = value


def load(
    name: str, revision: str = "main", dtype: str = "float32", device: str = "cpu", attention: str = "eager", site: Site = "gate"
) -> Model:
    """Load a model from a local folder or, by name, from the hub's cache or the network.

    Raises:
        ModelError: the folder or name does not exist, holds no weights, the hub cannot be reached, or the
            architecture has no per-token neurons of the wanted site.
    """
    if os.environ.get("VALUELOCATE_HEADLESS"):
        transformers_logging.disable_progress_bar()
    folder = Path(name)
    local = folder.is_dir()
    shown = folder.name if local else name  # never an absolute path
    if local:
        _check_folder(folder)
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"model folder {name} does not exist: give a folder with config.json and *.safetensors, or a hub name")
    options = {} if local else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        config = AutoConfig.from_pretrained(name, **options)
        _check_family(shown, config)
        hf, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, dtype), attn_implementation=attention, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        if local:
            raise ModelError(f"model folder {shown} cannot be loaded: {_first_line(error)}") from None
        raise ModelError(
            f"model {name!r} is neither a local folder nor in the hub's cache, and the hub did not give it ({_first_line(error)}): "
            "check the name, connect to the network once, or pass a downloaded folder as MODEL="
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the weights of {shown} lack {missing[0]} ({len(missing)} missing in all): download or restore them again")
    return wrap(hf.to(device), tokenizer, name=shown, site=site,
                revision="local" if local else getattr(config, "_commit_hash", None) or revision,
                forms=_read_forms(folder) if local else None)  # fmt: skip


def wrap(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "model", revision: str = "local", site: Site = "gate",
    forms: dict[str, dict[str, list[str]]] | None = None,
) -> Model:
    """Wrap an instantiated transformers model; `load` calls this, and so may a user who has one in memory."""
    template: Literal["own", "plain"] = "own" if tokenizer.chat_template else "plain"
    if template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    hf.eval().requires_grad_(False)
    sites = resolve_sites(hf)
    tracer = TransformersModel(hf, task="text-generation", tokenizer=tokenizer, dispatch=True)
    model = Model(hf, tracer, tokenizer, sites, name, revision, weights_hash(hf), template, forms)
    model.envoy(0, site)
    return model


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"folder {folder.name} has no config.json: it is not a model folder")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model folder {folder.name} holds no weights (*.safetensors): download them or name another folder (pickled weights are not read)")
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt"):  # reads the header and compares it with the file's length
                pass
        except Exception as error:
            raise ModelError(f"{folder.name}/{path.name} is damaged ({_first_line(error)}): download or restore it again") from None


def _read_forms(folder: Path) -> dict[str, dict[str, list[str]]] | None:
    path = folder / "answer_forms.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _check_family(name: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model: only decoder-only language models are supported")
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if (getattr(config, key, None) or 0) > 1]
    if experts:
        raise ModelError(f"{name} is a mixture of experts ({experts[0]}): its neurons have no value at every token; use a dense model")


def resolve_sites(hf: PreTrainedModel) -> tuple[LayerSites, ...]:
    """Find every layer's activation module and projections, then check them by one probe forward.

    The layers are the one ModuleList of `num_hidden_layers` members; in each, exactly one activation module lies beside a
    projection from d_ff to the residual stream.

    Raises:
        ModelError: no such structure, or the probe's shapes are not [batch, token, d_ff].
    """
    body = getattr(hf, hf.base_model_prefix, None)
    config = hf.config
    stacks = [] if body is None else [
        (path, m) for path, m in body.named_modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers
    ]  # fmt: skip
    if len(stacks) != 1:
        raise ModelError(f"{type(hf).__name__}: found {len(stacks)} stacks of {config.num_hidden_layers} layers, need exactly one")
    path, stack = stacks[0]
    sites = tuple(_layer_sites(type(hf).__name__, f"{path}.{i}", layer, config.hidden_size) for i, layer in enumerate(stack))
    _probe(hf, body, sites)
    return sites


def _is_activation(module: nn.Module) -> bool:
    return not list(module.children()) and not list(module.parameters()) and (
        "activation" in type(module).__module__ or type(module).__module__ == "torch.nn.modules.activation"
    )  # fmt: skip


def _layer_sites(family: str, prefix: str, layer: nn.Module, hidden: int) -> LayerSites:
    found = [p for p, m in layer.named_modules() if _is_activation(m)]
    if len(found) != 1:
        raise ModelError(f"{family}: {prefix} has {len(found)} activation modules, need exactly one (mixtures of experts are not supported)")
    parent = found[0].rpartition(".")[0]
    projections = {p: m for p, m in layer.get_submodule(parent).named_children() if getattr(m, "weight", None) is not None and m.weight.ndim == 2}
    def path(child: str) -> str:
        return ".".join(part for part in (prefix, parent, child) if part)
    outs = {p: _width(m) for p, m in projections.items()}
    down = [p for p, (_, out) in outs.items() if out == hidden]
    if len(down) != 1 or outs[down[0]][0] == hidden:
        raise ModelError(f"{family}: {prefix}.{parent or 'layer'} has no single projection from its neurons to the residual stream")
    d_ff = outs[down[0]][0]
    ups = [p for p, shape in outs.items() if p.startswith("up") and shape == (hidden, d_ff)]
    return LayerSites(path(found[0].rpartition(".")[2]), path(down[0]), path(ups[0]) if ups and len(projections) > 2 else None)


def _width(projection: nn.Module) -> tuple[int, int]:
    rows, columns = projection.weight.shape
    return (rows, columns) if type(projection).__name__ == "Conv1D" else (columns, rows)


def _probe(hf: PreTrainedModel, body: nn.Module, sites: Sequence[LayerSites]) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    handles = [
        body.get_submodule(s.activation).register_forward_hook(lambda _m, _i, o, p=s.activation: seen.__setitem__(p, tuple(o.shape))) for s in sites
    ] + [
        body.get_submodule(s.down).register_forward_pre_hook(lambda _m, i, p=s.down: seen.__setitem__(p, tuple(i[0].shape))) for s in sites
    ]  # fmt: skip
    try:
        with torch.inference_mode():
            body(input_ids=torch.zeros(1, 3, dtype=torch.long, device=hf.device))
    finally:
        for handle in handles:
            handle.remove()
    for s in sites:
        width = _width(body.get_submodule(s.down))[0]
        for path in (s.activation, s.down):
            if seen.get(path) != (1, 3, width):
                raise ModelError(f"{type(hf).__name__}: {path} gave {seen.get(path)} in the probe, not (1, 3, {width}): its tokens are flattened or skipped")


def weights_hash(hf: PreTrainedModel) -> str:
    """sha256 over names, shapes and values of all parameters, the same on every machine for the same weights and dtype."""
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.state_dict().items()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() if parameter.numel() else b"")
    return digest.hexdigest()


def encode(model: Model, message: str) -> list[int]:
    """Ids of a one-turn conversation up to the point where the model's answer begins."""
    return model.tokenizer.apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False)


def encode_answer(model: Model, text: str) -> list[int]:
    """Ids of an answer's text as it continues a prompt, without special tokens."""
    lead = "" if model.template == "own" else " "
    return model.tokenizer(lead + text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Padded:
    """A batch: ids, mask and position ids, all [batch, token]."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of a forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device | str, side: Literal["left", "right"] = "left") -> Padded:
    """Pad rows of ids to one length. Position ids count real tokens, so that padding changes nothing for any architecture."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        at = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, at] = torch.tensor(list(tokens), dtype=torch.long)
        mask[row, at] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return Padded(ids.to(device), mask.to(device), positions.to(device))


def length_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of `size`, longest first, so that little is padded and a batch too large fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]
