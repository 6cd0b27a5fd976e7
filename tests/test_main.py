"""The command line: settings, notebook execution, cleaning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from valuelocate_utils import __main__ as cli
from valuelocate_utils import runs
from valuelocate_utils.runs import RunError


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("seed=3", {"seed": 3}),
        ("gammas=[0.5, 1] generated=20", {"gammas": [0.5, 1], "generated": 20}),
        ("limits={locate: 64, tune: 20, test: 100}  site=up", {"limits": {"locate": 64, "tune": 20, "test": 100}, "site": "up"}),
        ('limits={"locate": 8}', {"limits": {"locate": 8}}),
    ],
)
def test_settings_are_yaml_values(text: str, settings: dict) -> None:
    assert cli.settings_of(text) == settings


@pytest.mark.parametrize("text", ["seed", "gammas=[1"])
def test_unreadable_settings_are_named(text: str) -> None:
    with pytest.raises(RunError, match="setting"):
        cli.settings_of(text)


def notebook(tmp_path: Path, *sources: str) -> Path:
    cells = [new_code_cell("x: int = 1", metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), path)
    return path


def test_execute_refuses_an_unknown_parameter_before_it_runs(tmp_path: Path) -> None:
    target = tmp_path / "out" / "n.ipynb"
    with pytest.raises(RunError, match=r"n\.ipynb has no parameter 'gama': it takes x"):
        cli.execute(notebook(tmp_path), {"gama": 2}, target)
    assert not target.exists()


def test_execute_injects_parameters(tmp_path: Path) -> None:
    target = tmp_path / "out" / "n.ipynb"
    cli.execute(notebook(tmp_path, "print(x + 1)"), {"x": 41}, target)
    assert "42" in nbformat.read(target, 4).cells[-1].outputs[0].text
    assert [p.name for p in target.parent.iterdir()] == ["n.ipynb"]


def test_a_failed_notebook_leaves_the_last_good_one(tmp_path: Path) -> None:
    target = tmp_path / "out" / "n.ipynb"
    target.parent.mkdir()
    target.write_text("good")
    with pytest.raises(RunError, match=r"n\.ipynb stopped with ZeroDivisionError: division by zero \(see n\.failed\.ipynb"):
        cli.execute(notebook(tmp_path, "1 / 0"), {}, target)
    assert target.read_text() == "good" and target.with_name("n.failed.ipynb").exists()


def test_an_error_of_ours_is_shown_as_its_own_line(tmp_path: Path) -> None:
    source = "from valuelocate_utils.runs import RunError\nraise RunError('the thing, the reason, the way out')"
    with pytest.raises(RunError, match="^the thing, the reason, the way out$"):
        cli.execute(notebook(tmp_path, source), {}, tmp_path / "out.ipynb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.ipynb"]


def test_clean_keeps_tagged_outputs_and_is_stable(tmp_path: Path) -> None:
    def cell(tags: list[str], count: int) -> nbformat.NotebookNode:
        parts = [new_output("stream", name="stdout", text=t) for t in ("a\n", "b\n")]
        return new_code_cell("print()", metadata={"tags": tags, "papermill": {"duration": count}}, outputs=parts, execution_count=count)

    executed = new_notebook(cells=[new_markdown_cell("# t"), cell(["injected-parameters"], 1), cell([], 2), cell(["keep_output"], 3)])
    executed.metadata = {"papermill": {"duration": 1}, "language_info": {"version": "3.11.7"}, "kernelspec": {"name": "other", "display_name": "o"}}
    path = tmp_path / "n.ipynb"
    nbformat.write(executed, path)
    text = cli.clean(path)
    path.write_text(text, encoding="utf-8")
    assert cli.clean(path) == text
    cells = nbformat.reads(text, 4).cells
    assert [(c.execution_count, [o.text for o in c.outputs]) for c in cells[1:]] == [(1, []), (2, ["a\nb\n"])]
    assert "papermill" not in text and "3.11.7" not in text and nbformat.reads(text, 4).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "organsim"], "unknown preset 'organsim'"),
        (["--set", "gammas=[abc]"], "gammas.0: Input should be a valid number"),
        (["--set", "gama=1"], "gama: Extra inputs are not permitted"),
        (["-p", "gama", "1"], "has no parameter 'gama'"),
    ],
)
def test_a_mistake_is_one_line_and_a_failing_exit(arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUELOCATE_RUNS", str(tmp_path))
    command = [sys.executable, "-m", "valuelocate_utils", "execute", "notebooks/01_dataset.ipynb", *arguments]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False)
    told = [t for t in done.stderr.splitlines() if t]
    assert done.returncode == 1 and len(told) == 1 and told[0].startswith("error: ") and line in told[0]
    assert not list(tmp_path.iterdir())


def table(**changes: object) -> pd.DataFrame:
    rows = pd.DataFrame({"dimension": [f"d{i}" for i in range(8)], "effect": 0.2, "holds": True})
    for name, (row, value) in changes.items():
        rows.loc[row, name] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "line"),
    [(table(holds=(3, False)), "7 of 8 cells hold"), (table().head(7), "7 of 8 cells hold"), (table(effect=(slice(0, 7), 0.12)), "mean effect is 0.120")],
)
def test_check_fails_where_the_main_result_does(rows: pd.DataFrame, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUELOCATE_RUNS", str(tmp_path))
    with pytest.raises(RunError, match=r"headline\.csv is missing: notebook 05_figures makes it"):
        cli.check("r")
    (tmp_path / "r" / "figures").mkdir(parents=True)
    rows.to_csv(tmp_path / "r" / "figures" / "headline.csv")
    with pytest.raises(RunError, match=line):
        cli.check("r")
    table().to_csv(tmp_path / "r" / "figures" / "headline.csv")
    cli.check("r")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A finished run's files, all empty, under a copy of the Makefile: what make itself would do is then a matter of seconds."""
    sources = [p.relative_to(runs.ROOT) for folder in ("notebooks", "notebooks/params", "valuelocate_utils") for p in (runs.ROOT / folder).iterdir() if p.is_file()]
    products = ["answers/a.jsonl", "shards/a/0.safetensors", "neurons.parquet", "effects.parquet", "figures/headline.csv"]
    executed = [f"runs/smoke/notebooks/{stage}.ipynb" for stage in runs.STAGES]
    for path in map(tmp_path.joinpath, [*sources, *(f"runs/smoke/{p}" for p in products), ".venv/.ready", *executed]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "Makefile").write_bytes((runs.ROOT / "Makefile").read_bytes())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    os.utime(tmp_path / ".venv/.ready")
    for path in executed:
        os.utime(tmp_path / path)
    stages = {"02_activations": {"outputs": dict.fromkeys(products[:2], "hash")}, "04_interventions": {"inputs": {products[2]: ""}, "outputs": {products[3]: ""}},
              "05_figures": {"outputs": {products[4]: "hash"}}}  # fmt: skip
    (tmp_path / "runs/smoke/manifest.json").write_text(json.dumps({"stages": stages}, indent=2))
    return tmp_path


@pytest.mark.parametrize(
    ("gone", "first"),
    [(None, None), ("shards/a/0.safetensors", 1), ("answers/a.jsonl", 1), ("neurons.parquet", 2), ("effects.parquet", 3), ("figures/headline.csv", 4)],
)
def test_make_runs_the_stages_from_a_missing_product_on(project: Path, gone: str | None, first: int | None) -> None:
    if gone:
        (project / "runs/smoke" / gone).unlink()
    told = subprocess.run(["make", "-n", "run", "PRESET=smoke"], cwd=project, capture_output=True, text=True, check=True).stdout
    again = re.findall(r"execute notebooks/(\w+)\.ipynb", told)
    assert again == ([] if first is None else list(runs.STAGES[first:]))
