"""The run folder: settings, tables, atomic writes, manifest, and the errors a user can mend."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from valuelocate_utils import runs
from valuelocate_utils.runs import Run, RunError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root with the presets `little` and `other`; runs lie in a folder beside it."""
    params = tmp_path / "project" / "notebooks" / "params"
    params.mkdir(parents=True)
    (params / "little.yaml").write_text(yaml.safe_dump({"seed": 3, "gammas": [0.5, 1.5], "shard_size": 4}), encoding="utf-8")
    (params / "other.yaml").write_text("", encoding="utf-8")
    monkeypatch.setattr(runs, "ROOT", tmp_path / "project")
    monkeypatch.setenv("VALUELOCATE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "project"


@pytest.fixture
def run(project: Path) -> Run:
    return runs.open_run("first", "little")


def scores(n: int = 3) -> pd.DataFrame:
    """A correct `scores` table of n neurons."""
    values = np.random.default_rng(n).random((n, 7))
    columns = ["score", "p_plus", "p_minus", "a95_plus", "a95_minus", "p_value", "q_value"]
    head = pd.DataFrame({"dimension": "conservation", "method": "probability_difference", "site": "gate", "layer": 0, "neuron": range(n)})
    return pd.concat([head, pd.DataFrame(values, columns=columns)], axis=1)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


# ----------------------------------------------------------------------------------------------------------------- settings
def test_a_preset_gives_its_settings_and_the_defaults(project: Path) -> None:
    config = runs.load_config("little")
    assert (config.preset, config.seed, config.gammas, config.shard_size) == ("little", 3, (0.5, 1.5), 4)
    assert config.site == "gate" and runs.load_config("other").seed == 0


def test_overrides_replace_and_blanks_are_passed_over(project: Path) -> None:
    config = runs.load_config("little", {"seed": 0, "model": "", "gammas": None, "shard_size": 8})
    assert (config.seed, config.model, config.gammas, config.shard_size) == (0, "data/organism", (0.5, 1.5), 8)


def test_presets_are_the_params_files(project: Path) -> None:
    assert runs.presets() == ["little", "other"]


@pytest.mark.parametrize("preset", ["huge", "", "../params/little", "little.yaml"])
def test_an_unknown_preset_lists_those_there_are(project: Path, preset: str) -> None:
    with pytest.raises(RunError, match="unknown preset .*little, other"):
        runs.load_config(preset)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("gama", [1.0], "Extra inputs"),
        ("gammas", ["strong"], "number"),
        ("gammas", "0.5", "tuple"),
        ("gammas", [float("nan")], "finite"),
        ("gammas", [1.0, float("inf")], "finite"),
        ("gammas", [0.0], "greater than 0"),
        ("thresholds", [1.0], "less than 1"),
        ("thresholds", [-0.1], "greater than or equal to 0"),
        ("batch_size", 0, "greater than 0"),
        ("batch_size", 2.5, "integer"),
        ("site", "residual", "gate"),
        ("methods", ["lape"], "probability_difference"),
        ("limits", {"train": 3}, "locate"),
        ("limits", {"tune": -1}, "greater than 0"),
        ("repetition_penalty", 0.5, "greater than or equal to 1"),
        ("budget", {"degenerate": 2}, "less than or equal to 1"),
    ],
)
def test_a_bad_setting_is_named_with_its_reason(project: Path, setting: str, value: Any, reason: str) -> None:
    with pytest.raises(RunError, match=f"^preset little: setting {setting}[.:].*{reason}") as caught:
        runs.load_config("little", {setting: value})
    assert "\n" not in str(caught.value)


def test_preset_among_the_settings_is_a_run_error(project: Path) -> None:
    with pytest.raises(RunError, match="preset"):
        runs.load_config("little", {"preset": "other"})


def test_the_shipped_presets_load() -> None:
    assert {"smoke", "organism", "paper"} <= set(runs.presets())
    for preset in runs.presets():
        assert runs.load_config(preset).preset == preset


@pytest.mark.parametrize("limits", [{"locate": 8}, {"test": 8, "tune": None}])
def test_limits_given_for_some_splits_leave_the_others_readable(project: Path, limits: dict[str, int | None]) -> None:
    """`config.limits[split]` is read for every split, so a split left out must mean no limit (or be refused when loading)."""
    config = runs.load_config("little", {"limits": limits})
    assert {split: config.limits[split] for split in runs.SPLITS} == {split: limits.get(split) for split in runs.SPLITS}


@pytest.mark.parametrize("text", ["seed: [1", "- seed", "seed: 1\npreset: other\n"], ids=["broken", "a list", "preset inside"])
def test_a_params_file_that_cannot_be_used_is_a_run_error(project: Path, text: str) -> None:
    (project / "notebooks" / "params" / "little.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="little"):
        runs.load_config("little")


# ------------------------------------------------------------------------------------------------------------------ the run
def test_open_run_makes_folder_and_manifest(run: Run, tmp_path: Path) -> None:
    assert run.folder == tmp_path / "runs" / "first"
    manifest = json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["name"], manifest["seed"], manifest["stages"]) == ("first", 3, {})
    assert manifest["configuration"]["gammas"] == [0.5, 1.5] and manifest["packages"]["torch"] == torch.__version__
    assert not temporaries(run.folder)


def test_an_empty_name_is_the_preset(project: Path) -> None:
    assert runs.open_run("", "little").folder.name == "little"


def test_reopening_with_the_same_settings_leaves_the_manifest(run: Run) -> None:
    before = run.path("manifest.json").read_bytes()
    assert runs.open_run("first", "little", model="", settings={"seed": 3, "gammas": [0.5, 1.5]}).config == run.config
    assert run.path("manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({"seed": 4}, "seed = 3, not 4"), ({"gammas": [0.5]}, r"gammas = \[0.5, 1.5\], not \[0.5\]"), ({"site": "up"}, "site = 'gate', not 'up'")],
)
def test_changed_settings_are_refused_and_named(run: Run, settings: dict[str, Any], shown: str) -> None:
    before = run.path("manifest.json").read_bytes()
    with pytest.raises(RunError, match=f"run 'first' was made with {shown}.*RUN="):
        runs.open_run("first", "little", settings=settings)
    assert run.path("manifest.json").read_bytes() == before


def test_another_model_is_a_changed_setting(run: Run) -> None:
    with pytest.raises(RunError, match="model = 'data/organism', not 'gpt2'"):
        runs.open_run("first", "little", model="gpt2")


@pytest.mark.parametrize("settings", ["gammas: 1", ["gammas"], 3])
def test_settings_that_are_no_mapping_are_refused(project: Path, tmp_path: Path, settings: Any) -> None:
    with pytest.raises(RunError, match="settings must be a mapping"):
        runs.open_run("first", "little", settings=settings)
    assert not (tmp_path / "runs").exists()


def test_another_preset_is_a_changed_setting(run: Run) -> None:
    with pytest.raises(RunError, match="preset = 'little', not 'other'"):
        runs.open_run("first", "other")


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "..", "with space", "new\nline"])
def test_a_name_that_is_no_folder_is_refused(project: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="not usable as a folder"):
        runs.open_run(name, "little")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", [b"", b'{"configuration": {"seed"', b"{}", b"\xff\xfe", b"[]", b'{"configuration": null}'])
def test_a_damaged_manifest_says_how_to_go_on(run: Run, content: bytes) -> None:
    run.path("manifest.json").write_bytes(content)
    with pytest.raises(RunError, match="manifest.json is damaged.*RUN="):
        runs.open_run("first", "little")


def test_relative_is_never_absolute(run: Run, tmp_path: Path) -> None:
    assert run.relative(run.path("shards/a.positive/0.safetensors")) == "runs/first/shards/a.positive/0.safetensors"
    assert str(tmp_path) not in run.relative(run.path("scores.parquet"))


def test_need_returns_what_is_there_and_names_the_maker_of_what_is_not(run: Run, tmp_path: Path) -> None:
    assert run.need("manifest.json", "01_dataset") == run.path("manifest.json")
    with pytest.raises(RunError, match="^runs/first/figures is missing: .*05_figures.*make run PRESET=little RUN=first") as caught:
        run.need("figures", "05_figures")
    assert str(tmp_path) not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------- tables
def test_a_table_comes_back_as_written(run: Run) -> None:
    run.write_table("scores", scores().iloc[::-1])
    pd.testing.assert_frame_equal(run.read_table("scores"), scores().iloc[::-1].reset_index(drop=True), check_dtype=False)
    assert not temporaries(run.folder)


BREAKS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "p_value above one": lambda t: t.assign(p_value=1.01),
    "score below minus one": lambda t: t.assign(score=-1.01),
    "missing score": lambda t: t.assign(score=np.nan),
    "unknown dimension": lambda t: t.assign(dimension="power"),
    "unknown site": lambda t: t.assign(site="residual"),
    "negative layer": lambda t: t.assign(layer=-1),
    "neuron not an integer": lambda t: t.assign(neuron=0.5),
    "missing column q_value": lambda t: t.drop(columns="q_value"),
    "extra column note": lambda t: t.assign(note="x"),
    "columns out of order": lambda t: t[t.columns[::-1]],
}
broken = pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)


@broken
def test_a_table_that_breaks_its_schema_is_not_written(run: Run, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    before = run.write_table("scores", scores()).read_bytes()
    with pytest.raises(RunError, match="^table scores breaks its schema") as caught:
        run.write_table("scores", change(scores()))
    assert run.path("scores.parquet").read_bytes() == before and not temporaries(run.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", [case for case in BREAKS if case != "columns out of order"])
def test_the_schema_error_names_the_column(run: Run, case: str) -> None:
    column = next(c for c in ["note", *scores().columns] if c in case)
    with pytest.raises(RunError, match=column):
        run.write_table("scores", BREAKS[case](scores()))


@broken
def test_a_table_that_breaks_its_schema_is_not_read(run: Run, change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path) -> None:
    change(scores()).to_parquet(run.path("scores.parquet"), index=False)
    with pytest.raises(RunError, match=r"^table runs/first/scores.parquet breaks its schema .*03_neurons") as caught:
        run.read_table("scores")
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", runs.MAKERS)
def test_a_missing_table_names_its_notebook_and_make(run: Run, name: str) -> None:
    with pytest.raises(RunError, match=rf"^runs/first/{name}.parquet is missing: notebook {runs.MAKERS[name]} .*make run PRESET=little RUN=first"):
        run.read_table(name)


def test_tables_are_made_where_the_design_says() -> None:
    assert set(runs.MAKERS) <= set(runs.SCHEMAS)
    assert {name: runs.MAKERS[name] for name in ("scores", "neurons", "effects")} == {
        "scores": "03_neurons", "neurons": "03_neurons", "effects": "04_interventions",
    }  # fmt: skip


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1, -9])
def test_a_truncated_table_is_called_damaged(run: Run, keep: float) -> None:
    path = run.write_table("scores", scores(50))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    with pytest.raises(RunError, match="^table runs/first/scores.parquet is damaged .*03_neurons") as caught:
        run.read_table("scores")
    assert "\n" not in str(caught.value)


def test_the_error_of_a_damaged_table_shows_no_absolute_path(run: Run, tmp_path: Path) -> None:
    run.path("scores.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(RunError) as caught:
        run.read_table("scores")
    assert str(tmp_path) not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- answers and tensors
def test_answers_come_back_as_written(run: Run) -> None:
    rows = [{"question_id": "q.1", "answer": 'I\'d say "no"\nand go – 好', "n_tokens": 5, "degenerate": False}, {"question_id": "q.2", "answer": ""}]
    run.write_answers("conservation", "positive", rows)
    assert run.read_answers("conservation", "positive") == rows
    assert len(run.path("answers/conservation.positive.jsonl").read_text(encoding="utf-8").split("\n")) == 3


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_answers_with_unicode_line_separators_come_back(run: Run, separator: str) -> None:
    rows = [{"question_id": "q.1", "answer": f"one{separator}two"}]
    run.write_answers("conservation", "positive", rows)
    assert run.read_answers("conservation", "positive") == rows


def test_missing_answers_are_an_error_unless_allowed(run: Run) -> None:
    assert run.read_answers("conservation", "negative", missing_ok=True) == []
    with pytest.raises(RunError, match="answers/conservation.negative.jsonl is missing: notebook 02_activations"):
        run.read_answers("conservation", "negative")


def test_truncated_answers_are_called_damaged(run: Run) -> None:
    run.write_answers("conservation", "positive", [{"question_id": "q.1", "answer": "yes"}])
    path = run.path("answers/conservation.positive.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="runs/first/answers/conservation.positive.jsonl is damaged"):
        run.read_answers("conservation", "positive")


def test_tensors_come_back_also_from_a_view(run: Run) -> None:
    whole = torch.arange(12).reshape(3, 4)
    run.write_tensors("shards/x/0.safetensors", {"view": whole.T}, {"fingerprint": "f"})
    assert load_file(run.path("shards/x/0.safetensors"))["view"].tolist() == whole.T.tolist()


# ------------------------------------------------------------------------------------------------------------ atomic writing
@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that must survive a failed write."""
    path = tmp_path / "out" / "file.txt"
    path.parent.mkdir()
    path.write_text("old", encoding="utf-8")
    return path


def survives(path: Path) -> bool:
    return path.read_text(encoding="utf-8") == "old" and list(path.parent.iterdir()) == [path]


def test_atomic_replaces_and_makes_folders(old: Path) -> None:
    for path in (old, old.parent / "a" / "b" / "new.txt"):
        with runs.atomic(path) as temporary:
            temporary.write_text("new", encoding="utf-8")
            assert temporary.parent == path.parent and temporary != path
        assert path.read_text(encoding="utf-8") == "new" and [p for p in path.parent.iterdir() if p.is_file()] == [path]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_an_exception_inside_leaves_the_old_file_and_passes_on(old: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, runs.atomic(old) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error
    assert caught.value is error and survives(old)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EFBIG, "disk is full"),
        (errno.EACCES, "may not be written"), (errno.EROFS, "may not be written"),
    ],  # fmt: skip
)
def test_a_disk_error_is_a_run_error_and_keeps_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, reason: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(code, "the number alone must tell")

    monkeypatch.setattr(runs.os, call, fail)
    with pytest.raises(RunError, match=f"^cannot write file.txt: .*{reason}") as caught, runs.atomic(old) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert survives(old) and str(old.parent) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("No space left on device (os error 28)", "disk is full"),
        ("Disk quota exceeded (os error 122)", "disk is full"),
        ("Permission denied (os error 13)", "may not be written"),
        ("Read-only file system (os error 30)", "may not be written"),
    ],
)
def test_a_disk_error_of_safetensors_is_a_run_error(old: Path, text: str, reason: str) -> None:
    """safetensors gives no errno, only the system's words."""
    with pytest.raises(RunError, match=reason), runs.atomic(old):
        raise SafetensorError(f"Error while serializing: I/O error: {text}")
    assert survives(old)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A real refusal by the system to write more than `size` bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS: dict[str, tuple[str, Callable[[Run, int], Any]]] = {
    "table": ("scores.parquet", lambda run, n: run.write_table("scores", scores(n))),
    "answers": ("answers/conservation.positive.jsonl", lambda run, n: run.write_answers("conservation", "positive", [{"answer": "word " * n}])),
    "tensors": ("shards/x/0.safetensors", lambda run, n: run.write_tensors("shards/x/0.safetensors", {"t": torch.zeros(n)}, {})),
    "manifest": ("manifest.json", lambda run, n: run.note(dataset_sha256="f" * n)),
}


@pytest.mark.parametrize(("path", "write"), WRITERS.values(), ids=WRITERS)
def test_a_write_the_system_really_refuses_keeps_the_old_file(run: Run, path: str, write: Callable[[Run, int], Any]) -> None:
    write(run, 2)
    before = run.path(path).read_bytes()
    with file_size_limit(20_000), pytest.raises(RunError, match="cannot write .*disk is full"):
        write(run, 20_001)
    assert run.path(path).read_bytes() == before and not temporaries(run.folder)
    write(run, 20_001)
    assert run.path(path).stat().st_size > 20_000


# ------------------------------------------------------------------------------------------------------------ the manifest
def test_note_sets_entries_and_keeps_the_others(run: Run) -> None:
    run.note(dataset_sha256="abc")
    run.note(model={"weights": "def"})
    assert (run.manifest["dataset_sha256"], run.manifest["model"], run.manifest["name"]) == ("abc", {"weights": "def"}, "first")


def test_a_stage_records_hashes_of_inputs_and_outputs(run: Run) -> None:
    run.path("in.txt").write_bytes(b"in")
    with run.stage("03_neurons", inputs=["in.txt"], outputs=["out.txt"]):
        run.path("out.txt").write_bytes(b"out")
    stage = run.manifest["stages"]["03_neurons"]
    assert stage["inputs"] == {"in.txt": hashlib.sha256(b"in").hexdigest()}
    assert stage["outputs"] == {"out.txt": hashlib.sha256(b"out").hexdigest()}
    assert stage["wall_time_s"] >= 0


def test_a_failed_stage_leaves_the_record_of_earlier_ones(run: Run) -> None:
    with run.stage("02_activations"):
        pass
    before = run.path("manifest.json").read_bytes()
    with pytest.raises(ZeroDivisionError), run.stage("03_neurons"):
        raise ZeroDivisionError
    assert run.path("manifest.json").read_bytes() == before and list(run.manifest["stages"]) == ["02_activations"]


def test_a_repeated_stage_replaces_its_record_only(run: Run) -> None:
    for content in (b"1", b"2"):
        for stage in ("02_activations", "03_neurons"):
            with run.stage(stage, outputs=["out.txt"]):
                run.path("out.txt").write_bytes(content + stage.encode())
    assert {name: stage["outputs"]["out.txt"] for name, stage in run.manifest["stages"].items()} == {
        stage: hashlib.sha256(b"2" + stage.encode()).hexdigest() for stage in ("02_activations", "03_neurons")
    }


def test_notes_made_inside_a_stage_are_kept(run: Run) -> None:
    with run.stage("02_activations"):
        run.note(dataset_sha256="abc")
    assert run.manifest["dataset_sha256"] == "abc" and "02_activations" in run.manifest["stages"]


def test_a_folders_hash_follows_content_and_names(tmp_path: Path) -> None:
    def made(name: str, files: dict[str, bytes]) -> str:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return runs.sha256_of(tmp_path / name)

    same = [made("a", {"x/1": b"one", "x/2": b"two"}), made("b", {"x/2": b"two", "x/1": b"one"})]
    others = [made("c", {"x/1": b"one", "x/2": b"too"}), made("d", {"x/1": b"one", "x/3": b"two"}), made("e", {"x/1": b"one"})]
    assert same[0] == same[1] and len({same[0], *others}) == 4


@pytest.mark.parametrize(
    ("one", "two"),
    [({"a.positive/0": b"x"}, {"b.negative/0": b"x"}), ({"a": b"bc"}, {"ab": b"c"})],
    ids=["the folder within is renamed", "a byte moves from content to name"],
)
def test_a_folders_hash_tells_different_folders_apart(tmp_path: Path, one: dict[str, bytes], two: dict[str, bytes]) -> None:
    for name, files in (("one", one), ("two", two)):
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
    assert runs.sha256_of(tmp_path / "one") != runs.sha256_of(tmp_path / "two")


def test_digest_of_ignores_the_order_of_keys_only() -> None:
    assert runs.digest_of({"a": 1, "b": [1, 2]}) == runs.digest_of({"b": [1, 2], "a": 1})
    assert len({runs.digest_of(v) for v in ({"a": 1}, {"a": 2}, {"a": [1, 2]}, {"a": [2, 1]}, None)}) == 5
    assert len(runs.digest_of(None)) == 16


# ------------------------------------------------------------------------------------------------------------------- places
def test_runs_lie_in_the_project_unless_the_environment_says_otherwise(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert runs.runs_folder() == tmp_path / "runs"
    monkeypatch.setenv("VALUELOCATE_RUNS", "")
    assert runs.runs_folder() == project / "runs"


def test_check_parameters_accepts_a_notebooks_own_and_what_jupyter_keeps() -> None:
    own = {"preset": "smoke", "run_name": "", "model": "", "settings": {}}
    runs.check_parameters(own | {"_": "x", "__name__": "__main__", "In": [""], "Out": {}, "np": np, "exit": object()})


@pytest.mark.parametrize("value", ["x", 3, 0.5, True, [1], {"a": 1}])
def test_check_parameters_names_an_injected_stranger(value: Any) -> None:
    with pytest.raises(RunError, match="unknown parameter 'gamas'.*preset, run_name, model, settings"):
        runs.check_parameters({"preset": "smoke", "gamas": value})


def test_resolve_finds_folders_of_the_project_and_leaves_hub_names(project: Path) -> None:
    (project / "data" / "organism").mkdir(parents=True)
    assert runs.resolve("data/organism") == str(project / "data" / "organism")
    assert runs.resolve("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
