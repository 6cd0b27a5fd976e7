"""The run folder: configuration, paths, manifest, table schemas, atomic reading and writing.

`runs/<name>/` grows left to right and is a contract; see the README. Every path of a run is made here.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pandera.pandas as pa
import torch
import yaml
from pandera.errors import SchemaError, SchemaErrors
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors.torch import save_file
from tqdm.auto import tqdm

from .schwartz import ASPECTS, DIMENSIONS
from .valueinsight import SPLITS, Rendering

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("01_dataset", "02_activations", "03_neurons", "04_interventions", "05_figures")
PACKAGES = ("torch", "transformers", "nnsight", "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "seaborn")
METHODS = ("probability_difference",)


class RunError(RuntimeError):
    """Something a user can mend; the message is one line that names the thing, the reason and the way out."""


# ---------------------------------------------------------------------------------------------------------- configuration
Positive = Annotated[int, Field(gt=0)]
Gamma = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Threshold = Annotated[float, Field(ge=0, lt=1)]


class Budget(BaseModel):
    """What an edit may cost to count as usable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    degenerate: Annotated[float, Field(ge=0, le=1)] = 0.05
    perplexity_ratio: Annotated[float, Field(ge=1)] = 1.5


class Config(BaseModel):
    """Everything that decides a run's tables. Presets live in notebooks/params/<preset>.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    preset: str
    model: str = "data/organism"
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    attention: Literal["eager", "sdpa"] = "eager"
    threads: Positive | None = None  # of torch on the CPU; None leaves torch's own choice
    data: str = "data/valueinsight"
    seed: int = 0
    site: Literal["gate", "up", "product"] = "gate"
    rendering: Rendering = "choice"
    max_new_tokens: Positive = 48
    repetition_penalty: Annotated[float, Field(ge=1)] = 1.0
    batch_size: Positive = 32
    shard_size: Positive = 16
    sample_tokens: Positive = 128
    limits: dict[Literal["locate", "tune", "test"], Positive | None] = dict.fromkeys(SPLITS)
    methods: tuple[Literal["probability_difference"], ...] = METHODS
    permutations: Positive = 2000
    paper_threshold: Threshold = 0.10
    thresholds: tuple[Threshold, ...] = (0.1, 0.3)
    gammas: tuple[Gamma, ...] = (0.5, 1.0, 2.0)
    budget: Budget = Budget()
    control_draws: Positive = 10
    generated: Positive = 40
    preference: Literal["sum", "mean"] = "sum"
    choice_forms: Positive | None = 4
    bootstrap: Positive = 2000

    @field_validator("limits")
    @classmethod
    def _every_split(cls, limits: dict[str, int | None]) -> dict[str, int | None]:
        return dict.fromkeys(SPLITS) | limits


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    given = f" (got {first['input']!r})" if not isinstance(first["input"], dict) else ""
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}{given}"


def presets() -> list[str]:
    """Names of the presets in notebooks/params."""
    return sorted(path.stem for path in (ROOT / "notebooks" / "params").glob("*.yaml"))


def load_config(preset: str, overrides: dict[str, Any] | None = None) -> Config:
    """A preset's configuration with some settings replaced.

    Raises:
        RunError: no such preset, an unknown setting, or a value of the wrong type or range.
    """
    path = ROOT / "notebooks" / "params" / f"{preset}.yaml"
    if not re.fullmatch(r"[\w\-]+", preset) or not path.is_file():
        raise RunError(f"unknown preset {preset!r}: choose one of {', '.join(presets())}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RunError(f"notebooks/params/{path.name} is not readable YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict):
        raise RunError(f"notebooks/params/{path.name} must hold settings, one `name: value` a line")
    settings |= {k: v for k, v in (overrides or {}).items() if v not in ("", None)}
    if "preset" in settings:
        raise RunError(f"preset {preset}: `preset` is no setting; name the preset itself (PRESET=)")
    try:
        return Config(preset=preset, **settings)
    except ValidationError as error:
        raise RunError(f"preset {preset}: setting {_one_line(error)}; settings are listed in the README") from None


# ---------------------------------------------------------------------------------------------------------- table schemas
def _keys(*names: str) -> dict[str, pa.Column]:
    return {name: pa.Column(str, pa.Check.isin(DIMENSIONS)) for name in names}


_PROBABILITY = pa.Check.in_range(0, 1)
_NEURON = {"layer": pa.Column("int64", pa.Check.ge(0)), "neuron": pa.Column("int64", pa.Check.ge(0))}
_TEXT = pa.Column(str)
_FLOAT = pa.Column("float64")

OUTCOMES = ("forced_choice", "generated_choice", "likelihood_judge", "llm_judge", "portrait", "perplexity", "degenerate", "neutral_loss")
INTERVENTIONS = ("amplify", "ablate", "mean_ablate", "scale", "range_limited", "prompt", "steering_vector")

SCHEMAS: dict[str, pa.DataFrameSchema] = {
    "scores": pa.DataFrameSchema(
        _keys("dimension") | {"method": _TEXT, "site": pa.Column(str, pa.Check.isin(("gate", "up", "product")))} | _NEURON
        | {"score": pa.Column("float64", pa.Check.in_range(-1, 1)), "p_plus": pa.Column("float64", _PROBABILITY), "p_minus": pa.Column("float64", _PROBABILITY),
           "a95_plus": _FLOAT, "a95_minus": _FLOAT, "p_value": pa.Column("float64", _PROBABILITY), "q_value": pa.Column("float64", _PROBABILITY)},
        strict=True, ordered=True,
    ),
    "neurons": pa.DataFrameSchema(
        _keys("dimension") | {"aspect": pa.Column(str, pa.Check.isin(ASPECTS)), "method": _TEXT} | _NEURON | {"score": _FLOAT, "a95": _FLOAT},
        strict=True, ordered=True,
    ),
    "effects": pa.DataFrameSchema(
        _keys("edited_dimension")
        | {"aspect": pa.Column(str, pa.Check.isin(ASPECTS)), "method": _TEXT, "intervention": pa.Column(str, pa.Check.isin(INTERVENTIONS)),
           "control": pa.Column(str, pa.Check.isin(("none", "random"))), "gamma": pa.Column("float64", pa.Check.ge(0))}
        | _keys("measured_dimension")
        | {"outcome": pa.Column(str, pa.Check.isin(OUTCOMES)), "n": pa.Column("int64", pa.Check.gt(0)), "baseline": _FLOAT, "mean": _FLOAT, "low": _FLOAT, "high": _FLOAT},
        strict=True, ordered=True,
    ),
    "tuning": pa.DataFrameSchema(
        _keys("dimension")
        | {"aspect": pa.Column(str, pa.Check.isin(ASPECTS)), "method": _TEXT, "threshold": _FLOAT, "gamma": _FLOAT, "neurons": pa.Column("int64"), "n": pa.Column("int64"),
           "effect": _FLOAT, "perplexity_ratio": pa.Column("float64", nullable=True), "degenerate": pa.Column("float64", nullable=True),
           "usable": pa.Column(bool), "chosen": pa.Column(bool)},
        strict=True, ordered=True,
    ),
    "edited_answers": pa.DataFrameSchema(
        _keys("edited_dimension")
        | {"aspect": pa.Column(str, pa.Check.isin((*ASPECTS, "none"))), "intervention": _TEXT, "control": _TEXT, "gamma": _FLOAT, "question_id": _TEXT,
           "answer": _TEXT, "course": pa.Column(str, pa.Check.isin(("expresses", "rejects", "both", "neither"))), "degenerate": pa.Column(bool),
           "nll": pa.Column("float64", nullable=True), "n_tokens": pa.Column("int64")},
        strict=True, ordered=True,
    ),
}  # fmt: skip

MAKERS = {"scores": "03_neurons", "neurons": "03_neurons", "effects": "04_interventions", "tuning": "04_interventions", "edited_answers": "04_interventions"}


# ---------------------------------------------------------------------------------------------------------------- writing
@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there if the block succeeds, remove it if not.

    Raises:
        RunError: the disk is full or the folder may not be written; the file at `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if reason := _disk_error(error):
            raise RunError(f"cannot write {path.name}: {reason}; nothing already computed is lost, so mend that and run the same command again") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _disk_error(error: Exception) -> str | None:
    code = getattr(error, "errno", None)
    if code is None and (told := re.search(r"os error (\d+)", str(error))):  # safetensors' own exception carries it in its text
        code = int(told[1])
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full"
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return "the folder may not be written"
    return None


def reason_of(error: Exception, path: Path) -> str:
    """The first line of an error's text, without the absolute path of the file it is about."""
    return (str(error).splitlines() or [type(error).__name__])[0].replace(str(path), path.name)


def _schema_line(error: SchemaError | SchemaErrors) -> str:
    """One line of a pandera error that names the column."""
    return re.sub(r"\s+", " ", str(error))[:200]


def sha256_of(path: Path) -> str:
    """sha256 of a file; of a folder, of its files' relative paths and hashes."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(json.dumps([(p.relative_to(path).as_posix(), sha256_of(p)) for p in files]).encode()).hexdigest()


def digest_of(value: Any) -> str:
    """sha256 of a JSON value, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def progress(items: Iterable, what: str) -> Iterable:
    """A tqdm bar with rate and remaining time; silent when a notebook is executed headlessly."""
    return tqdm(items, desc=what, disable=bool(os.environ.get("VALUELOCATE_HEADLESS")))


# --------------------------------------------------------------------------------------------------------------- the run
@dataclass
class Run:
    """One run folder and its configuration."""

    name: str
    folder: Path
    config: Config

    def path(self, relative: str) -> Path:
        """A path inside the run folder."""
        return self.folder / relative

    def relative(self, path: Path) -> str:
        """A path as it may be shown: relative to the runs folder's parent, never absolute."""
        return f"runs/{self.name}/{path.relative_to(self.folder)}"

    def need(self, relative: str, maker: str) -> Path:
        """A path that must exist; otherwise RunError names the notebook and the make target that make it."""
        path = self.path(relative)
        if not path.exists():
            raise RunError(f"{self.relative(path)} is missing: notebook {maker} makes it (make run PRESET={self.config.preset} RUN={self.name})")
        return path

    # tables
    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Validate a table against its schema and write <name>.parquet atomically."""
        try:
            table = SCHEMAS[name].validate(table.reset_index(drop=True))
        except (SchemaError, SchemaErrors) as error:
            raise RunError(f"table {name} breaks its schema and was not written: {_schema_line(error)}") from None
        with atomic(self.path(f"{name}.parquet")) as temporary:
            table.to_parquet(temporary, index=False)
        return self.path(f"{name}.parquet")

    def read_table(self, name: str) -> pd.DataFrame:
        """Read and validate <name>.parquet.

        Raises:
            RunError: the table is missing (names its notebook), damaged, or breaks its schema.
        """
        path = self.need(f"{name}.parquet", MAKERS[name])
        again = f"delete it and run make run PRESET={self.config.preset} RUN={self.name}: notebook {MAKERS[name]} makes it again"
        try:
            return SCHEMAS[name].validate(pd.read_parquet(path))
        except (SchemaError, SchemaErrors) as error:
            raise RunError(f"table {self.relative(path)} breaks its schema ({_schema_line(error)}): {again}") from None
        except Exception as error:
            raise RunError(f"table {self.relative(path)} is damaged ({reason_of(error, path)}): {again}") from None

    # answers and tensors
    def write_answers(self, dimension: str, aspect: str, rows: list[dict]) -> None:
        """Write answers/<dimension>.<aspect>.jsonl whole and atomically."""
        with atomic(self.path(f"answers/{dimension}.{aspect}.jsonl")) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def read_answers(self, dimension: str, aspect: str, missing_ok: bool = False) -> list[dict]:
        """Rows of answers/<dimension>.<aspect>.jsonl; with `missing_ok`, no file is no rows."""
        relative = f"answers/{dimension}.{aspect}.jsonl"
        if missing_ok and not self.path(relative).exists():
            return []
        path = self.need(relative, "02_activations")
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        except ValueError as error:
            raise RunError(f"{self.relative(path)} is damaged ({error}): delete it together with its shards folder and run `make run` again") from None

    def write_tensors(self, relative: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Write a safetensors file atomically."""
        with atomic(self.path(relative)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    # manifest
    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk."""
        return json.loads(self.path("manifest.json").read_text(encoding="utf-8"))

    def note(self, **entries: Any) -> None:
        """Set entries of the manifest."""
        manifest = self.manifest | entries
        with atomic(self.path("manifest.json")) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @contextmanager
    def stage(self, name: str, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> Iterator[None]:
        """Record a stage in the manifest when its work has succeeded: hashes of inputs and outputs, wall time in seconds."""
        start = time.monotonic()
        yield
        hashes = {kind: {p: sha256_of(self.path(p)) for p in paths} for kind, paths in (("inputs", inputs), ("outputs", outputs))}
        self.note(stages=self.manifest["stages"] | {name: hashes | {"wall_time_s": round(time.monotonic() - start, 1)}})


def runs_folder() -> Path:
    """Where runs lie: `runs/` of the project, or the folder named by VALUELOCATE_RUNS."""
    return Path(os.environ.get("VALUELOCATE_RUNS") or ROOT / "runs")


def open_run(name: str, preset: str, model: str = "", settings: dict[str, Any] | None = None) -> Run:
    """Open a run, making its folder and manifest if it is new.

    Args:
        name: the run's name; empty takes the preset's.
        model: a model that replaces the preset's; empty keeps it.
        settings: other settings that replace the preset's.

    Raises:
        RunError: a bad name, preset or setting; or the run exists with other settings.
    """
    if not isinstance(settings, dict | None):
        raise RunError(f"settings must be a mapping such as {{'gammas': [1.0, 2.0]}}, not {settings!r}")
    name, config = name or preset, load_config(preset, {"model": model} | (settings or {}))
    if not re.fullmatch(r"[\w.\-]+", name) or name.startswith("."):
        raise RunError(f"run name {name!r} is not usable as a folder: use letters, digits, dots, dashes")
    run = Run(name, runs_folder() / name, config)
    if not run.path("manifest.json").exists():
        manifest = {"name": name, "configuration": config.model_dump(mode="json"), "seed": config.seed, "stages": {}, "packages": versions()}
        with atomic(run.path("manifest.json")) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return run
    try:
        before = dict(run.manifest["configuration"])
    except (ValueError, KeyError, TypeError):
        raise RunError(f"runs/{name}/manifest.json is damaged: choose another RUN= or delete the folder runs/{name}") from None
    now = config.model_dump(mode="json")
    if changed := [k for k in now if now[k] != before.get(k)]:
        raise RunError(
            f"run {name!r} was made with {changed[0]} = {before.get(changed[0])!r}, not {now[changed[0]]!r}: choose another RUN=, or delete runs/{name}"
        )
    return run


def check_parameters(namespace: dict[str, Any], known: Iterable[str] = ("preset", "run_name", "model", "settings")) -> None:
    """Refuse a parameter that a notebook does not have; papermill itself only warns of one.

    Args:
        namespace: the notebook's `globals()`, before it has assigned anything but its parameters.

    Raises:
        RunError: a plain value stands under another name, so it was injected.
    """
    plain = (str, int, float, bool, list, dict)
    given = {name for name, value in namespace.items() if type(value) in plain and not name.startswith("_") and name not in ("In", "Out")}
    if unknown := sorted(given - set(known)):
        raise RunError(f"unknown parameter {unknown[0]!r}: a notebook takes {', '.join(known)} (put a preset's setting into `settings`)")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {p: importlib.metadata.version(p) for p in PACKAGES}


def resolve(path: str) -> str:
    """A model or data setting as a path from the project's root where such a folder exists, else unchanged (a hub name)."""
    return str(ROOT / path) if (ROOT / path).is_dir() else path
