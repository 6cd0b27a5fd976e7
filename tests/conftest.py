"""Shared fixtures. Nothing here reaches the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("VALUELOCATE_HEADLESS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import tiny
import torch

from valuelocate_utils.models import Model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama() -> Model:
    """A tiny random Llama; read only."""
    return tiny.model("llama")


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Model]:
    """(name, tiny random model) of each family; read only."""
    return request.param, tiny.model(request.param)
