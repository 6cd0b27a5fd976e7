"""What the Makefile calls: execute a notebook into a run, refresh the committed notebooks, report, check, train ValueLM, grow the dataset."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml

from . import runs

NOTEBOOKS = runs.ROOT / "notebooks"


def settings_of(text: str) -> dict[str, Any]:
    """Parse `SET="gammas=[1,2] limits={tune: 8, test: 8}"` into settings; values are YAML and may hold spaces."""
    settings = {}
    for part in re.split(r"\s+(?=\w+=)", text.strip()) if text.strip() else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise runs.RunError(f"setting {part!r} is not name=value: write SET='gammas=[1,2] generated=20'")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise runs.RunError(f"setting {name}: {value!r} cannot be read as a value") from None
    return settings


def _parameters(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The given parameters, checked against the notebook's cell tagged `parameters`, which papermill itself does not."""
    import papermill

    if not notebook.is_file():
        raise runs.RunError(f"there is no notebook {notebook.name}: they are {', '.join(sorted(p.name for p in NOTEBOOKS.glob('*.ipynb')))}")
    known = papermill.inspect_notebook(str(notebook))
    if unknown := sorted(set(given) - set(known)):
        raise runs.RunError(f"{notebook.name} has no parameter {unknown[0]!r}: it takes {', '.join(known)}")
    return given


def execute(notebook: Path, parameters: dict[str, Any], target: Path) -> None:
    """Execute a notebook through papermill; the result appears at `target` only if every cell succeeded.

    Raises:
        RunError: a cell failed. For an error of ours the line is the error's own; for any other it names the cell's error
            and where the half-executed notebook was kept.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    parameters = _parameters(notebook, parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    failed, temporary = target.with_suffix(".failed.ipynb"), target.with_name(f".{target.name}.tmp.ipynb")
    os.environ["VALUELOCATE_HEADLESS"] = "1"
    try:
        papermill.execute_notebook(
            str(notebook), str(temporary), parameters, cwd=str(NOTEBOOKS), kernel_name="python3", progress_bar=False,
            extra_arguments=["--log-level=ERROR"],  # of the kernel, which otherwise warns of its local TCP sockets at every start
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename in ("RunError", "ModelError", "DatasetError"):
            raise runs.RunError(error.evalue) from None
        os.replace(temporary, failed)
        raise runs.RunError(f"{notebook.name} stopped with {error.ename}: {str(error.evalue).splitlines()[0]} (see {failed.name} beside the executed notebooks)") from None
    except OSError as error:
        raise runs.RunError(f"{notebook.name} could not be written: {error.strerror or error}; nothing already computed is lost") from None
    else:
        os.replace(temporary, target)
        failed.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)


def clean(path: Path) -> str:
    """The text of an executed notebook as it is committed: outputs of cells tagged `keep_output` only, no papermill or
    machine metadata, so that refreshing twice gives the same bytes."""
    import nbformat
    from nbstripout import strip_output

    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    keys = ["metadata.papermill", "metadata.language_info", "metadata.widgets", "cell.metadata.papermill", "cell.metadata.execution"]
    notebook = strip_output(notebook, keep_output=False, keep_count=True, keep_id=True, extra_keys=keys)
    for n, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = n
        cell.outputs = _merged(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = n
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _merged(outputs: list) -> list:
    """Adjacent outputs of one stream as one: where the kernel cuts a print in two is a matter of timing."""
    merged: list = []
    for output in outputs:
        if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def refresh() -> None:
    """Execute the committed notebooks in order, with their own defaults (the smoke preset), and write them back, clean."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VALUELOCATE_RUNS"] = folder
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            executed = Path(folder) / path.name
            execute(path, {}, executed)
            path.write_text(clean(executed), encoding="utf-8")
            print(f"refreshed {path.name}")


def report(run_name: str) -> None:
    """Join the executed notebooks of a run into runs/<name>/report.html (code hidden)."""
    import nbformat
    from nbconvert import HTMLExporter

    folder = runs.runs_folder() / run_name
    paths = sorted((folder / "notebooks").glob("0[1-5]*.ipynb"))
    if not paths:
        raise runs.RunError(f"run {run_name!r} has no executed notebooks: make run RUN={run_name} first")
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    joined = notebooks[0]
    joined.cells = [cell for notebook in notebooks for cell in notebook.cells]
    for n, cell in enumerate(joined.cells):
        cell.id = f"cell-{n}"
    html, _ = HTMLExporter(exclude_input=True).from_notebook_node(joined, resources={"metadata": {"name": f"ValueLocate: {run_name}"}})
    with runs.atomic(folder / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"runs/{run_name}/report.html")


def check(run_name: str) -> None:
    """Print the headline table of a run; RunError if a cell of the main result does not hold."""
    import pandas as pd

    from . import experiments

    path = runs.runs_folder() / run_name / "figures" / "headline.csv"
    if not path.is_file():
        raise runs.RunError(f"runs/{run_name}/figures/headline.csv is missing: notebook 05_figures makes it (make run RUN={run_name})")
    table = pd.read_csv(path)
    print(table.round(3).to_string(index=False))
    if len(table) < 8 or not table["holds"].all():
        raise runs.RunError(f"main result: {int(table['holds'].sum())} of 8 cells hold")
    if table["effect"].mean() < experiments.LEAST_MEAN_EFFECT:
        raise runs.RunError(f"main result: the mean effect is {table['effect'].mean():.3f}, below {experiments.LEAST_MEAN_EFFECT}")


def grow(value: str, place: str, n: int, into: str, model: str, timeout: float) -> None:
    """Grow a copy of the dataset until a cell has `n` new items; GrowthError if the endpoint gave fewer."""
    from . import growth

    if not model:
        raise growth.GrowthError("no model named: say which one the endpoint should use with LLM=")
    cell, folder = growth.Cell(value, place), Path(into) if into else runs.runs_folder() / "grown"
    counts = growth.grow(cell, n, folder, model, growth.client(timeout), runs.ROOT / "data" / "valueinsight")
    held = growth.Grown(folder, cell)
    told = f"{held.mine} of {n} {cell.kind} in {held.path.name}: {counts['accepted']} new from {counts['requests']} requests, lost: {growth.lost(counts)}"
    if held.mine < n:
        raise growth.GrowthError(f"{told}; {growth.AGAIN}, or name a better model with LLM=")
    print(f"{told}\nmake run RUN=grown SET='data={into or 'runs/grown'}' uses them")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m valuelocate_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("execute", help="execute one notebook into a run")
    one.add_argument("notebook", type=Path)
    one.add_argument("--preset", default="smoke")
    one.add_argument("--run", default="")
    one.add_argument("--model", default="")
    one.add_argument("--set", default="", help="settings that replace the preset's, name=value with YAML values")
    one.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any other notebook parameter")
    commands.add_parser("refresh", help="re-run and clean the committed notebooks")
    for name, text in (("report", "one HTML page of a run"), ("check", "print and check the main result of a run")):
        commands.add_parser(name, help=text).add_argument("--run", required=True)
    more = commands.add_parser("grow", help="ask an endpoint for more items of a cell")
    more.add_argument("--value", required=True)
    more.add_argument("--cell", required=True, help="a topic (questions) or an aspect (descriptions)")
    more.add_argument("--n", type=int, default=10)
    more.add_argument("--into", default="", help="the folder that grows; default, grown beside the runs")
    more.add_argument("--llm", default="", help="a model that the endpoint serves")
    more.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer")
    train = commands.add_parser("organism", help="train ValueLM")
    train.add_argument("--trials", action="store_true", help="repeat the whole search that chose the recipe")
    train.add_argument("--out", type=Path, default=runs.ROOT / "data" / "organism")
    return parser.parse_args()


def main() -> None:
    """Run a command; an error a user can mend is one line on standard error and exit code 1."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    arguments = _arguments()
    try:
        if arguments.command == "execute":
            parameters = {"preset": arguments.preset, "run_name": arguments.run, "model": arguments.model, "settings": settings_of(arguments.set)}
            parameters |= {name: yaml.safe_load(value) for name, value in arguments.p}
            config = runs.load_config(arguments.preset, {"model": arguments.model} | parameters["settings"])
            name = arguments.run or config.preset
            execute(arguments.notebook, parameters, runs.runs_folder() / name / "notebooks" / arguments.notebook.resolve().relative_to(NOTEBOOKS))
        elif arguments.command == "refresh":
            refresh()
        elif arguments.command == "report":
            report(arguments.run)
        elif arguments.command == "check":
            check(arguments.run)
        elif arguments.command == "grow":
            grow(arguments.value, arguments.cell, arguments.n, arguments.into, arguments.llm, arguments.timeout)
        else:
            from . import organism

            organism.search(arguments.out) if arguments.trials else organism.make(arguments.out)
    except (runs.RunError, RuntimeError, ValueError) as error:
        line = re.sub(r"\s+", " ", str(error)).strip()
        sys.exit(f"error: {line}")
    except KeyboardInterrupt:
        sys.exit("stopped: what was finished is kept, and the same command goes on from there")


if __name__ == "__main__":
    main()
