"""Edit plans, edited generation and matched controls.

An edit acts at the answer's tokens only, each time one is fed to the model; the prompt is read unedited.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from .models import Model, Site
from .schwartz import ASPECTS


@dataclass(frozen=True)
class LayerEdit:
    """One layer's edit: a[neuron] becomes min(scale * a[neuron] + offset, cap). All four are [k]."""

    neuron: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    cap: torch.Tensor

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """Edit activations [..., neuron]; the input is left alone."""
        edited, like = activations.clone(), {"dtype": activations.dtype, "device": activations.device}
        where = self.neuron.to(activations.device)
        edited[..., where] = torch.minimum(edited[..., where] * self.scale.to(**like) + self.offset.to(**like), self.cap.to(**like))
        return edited


@dataclass(frozen=True)
class EditPlan:
    """A deterministic edit of one site: layer -> LayerEdit, for layers that have neurons to edit."""

    site: Site
    layers: Mapping[int, LayerEdit]

    @property
    def n_neurons(self) -> int:
        """Number of neurons edited."""
        return sum(len(edit.neuron) for edit in self.layers.values())


def strength(score: np.ndarray) -> np.ndarray:
    """f(delta) = 1 / (1 + exp(-10 (|delta| - 0.15))), the paper's weight of a neuron's edit (Su et al. 2025, section 3.3)."""
    return 1 / (1 + np.exp(-10 * (np.abs(score) - 0.15)))


def _plan(site: Site, table: pd.DataFrame) -> EditPlan:
    if table.empty:
        raise ValueError("the edit has no neurons: lower the threshold, or choose another dimension")
    layers = {}
    for layer, rows in table.sort_values(["layer", "neuron"]).groupby("layer"):
        values = (torch.tensor(rows[name].to_numpy(np.float64), dtype=torch.float32) for name in ("scale", "offset", "cap"))
        layers[int(layer)] = LayerEdit(torch.tensor(rows["neuron"].to_numpy(np.int64)), *values)
    return EditPlan(site, layers)


def amplify(neurons: pd.DataFrame, aspect: str, gamma: float, site: Site) -> EditPlan:
    """The paper's rule (Su et al. 2025, section 3.3): neurons of the target aspect a + gamma * a95 * f(delta), those of the
    opposing aspect min(a, 0).

    Args:
        neurons: rows of the `neurons` table for one dimension (both aspects).
        aspect: the target.
        gamma: strength, above zero.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"unknown aspect {aspect!r}: choose one of {', '.join(ASPECTS)}")
    if not (isinstance(gamma, (int, float, np.number)) and math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be a number above 0, not {gamma!r}")
    target = (neurons["aspect"] == aspect).to_numpy()
    raised = gamma * neurons["a95"].to_numpy() * strength(neurons["score"].to_numpy())
    table = neurons[["layer", "neuron"]].assign(scale=1.0, offset=np.where(target, raised, 0.0), cap=np.where(target, np.inf, 0.0))
    return _plan(site, table)


def ablate(neurons: pd.DataFrame, aspect: str, site: Site) -> EditPlan:
    """Zero ablation of the neurons of one aspect."""
    table = neurons.loc[neurons["aspect"] == aspect, ["layer", "neuron"]].assign(scale=0.0, offset=0.0, cap=np.inf)
    return _plan(site, table)


def matched_random(plan: EditPlan, width: int, seed: int) -> EditPlan:
    """The layer-matched random control: the same edits (sizes and caps) on as many other neurons of the same layers.

    Args:
        width: neurons a layer (d_ff).

    Raises:
        ValueError: a layer has fewer neurons outside the plan than in it, so that no disjoint control exists.
    """
    rng, layers = np.random.default_rng(seed), {}
    for layer, edit in plan.layers.items():
        others = np.setdiff1d(np.arange(width), edit.neuron.numpy())
        if len(others) < len(edit.neuron):
            raise ValueError(f"layer {layer}: {len(edit.neuron)} of {width} neurons are edited, too many for a disjoint random control; raise the threshold")
        drawn = rng.choice(others, size=len(edit.neuron), replace=False)
        layers[layer] = replace(edit, neuron=torch.tensor(drawn))
    return EditPlan(plan.site, layers)


def apply(model: Model, plan: EditPlan) -> None:
    """Inside a trace: edit every layer of the plan, in layer order (nnsight wants reads in the order of execution)."""
    for layer in sorted(plan.layers):
        model.write(layer, plan.site, plan.layers[layer](model.read(layer, plan.site)))


@contextmanager
def edited(model: Model, plan: EditPlan | None) -> Iterator[Callable[..., torch.Tensor]]:
    """Yield a `generate` under the edit (None: the model's own). Greedy ids equal those of plain hooks.

    The prompt's pass is step 0 and is left alone; every later step feeds one generated token and is edited.
    """
    if plan is None:
        yield model.hf.generate
        return
    if not plan.layers:
        raise ValueError("the edit has no neurons")  # an open nnsight loop that reads nothing would never end
    with model.tracer.edit() as (tracer, changed):
        under_edit = replace(model, tracer=changed)
        for _ in tracer.iter[1:]:
            apply(under_edit, plan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached.*")  # every answer that stops early raises it
        yield changed.generate
