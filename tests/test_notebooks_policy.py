"""What every committed notebook keeps to: parameters, checked cells, clean outputs, small cells, more prose than code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from valuelocate_utils import runs

NOTEBOOKS = runs.ROOT / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
NUMBERED = [path for path in LESSONS if re.match(r"0\d_", path.name)]
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))

PARAMETERS = {"preset": ("str", "smoke"), "run_name": ("str", ""), "model": ("str", ""), "settings": ("dict", {})}
TAGS = {"parameters", "keep_output", "nbval-check-output"}
MOST_CELLS, MOST_LINES, MOST_OUTPUT = 30, 15, 50_000

lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
numbered = pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
solutions = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
every = pytest.mark.parametrize("path", [*LESSONS, *SOLUTIONS], ids=lambda p: f"{p.parent.name}/{p.stem}")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def tree(cell: NotebookNode) -> ast.Module:
    """A cell's syntax tree; a line of IPython's (`%magic`, `!shell`) has no place in these notebooks and fails here."""
    return ast.parse(cell.source)


def words(cells: list[NotebookNode]) -> int:
    return sum(len(cell.source.split()) for cell in cells)


# ------------------------------------------------------------------------------------------------------------------- suite
def test_every_stage_has_its_notebook() -> None:
    assert [path.stem for path in NUMBERED] == list(runs.STAGES)


def test_every_lesson_has_solutions_and_no_solution_is_orphaned() -> None:
    assert {path.stem for path in NUMBERED} <= {path.stem for path in SOLUTIONS} <= {path.stem for path in LESSONS}


# ------------------------------------------------------------------------------------------------------------------- shape
@every
def test_the_file_is_a_valid_notebook_for_the_python3_kernel(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@every
def test_the_metadata_names_no_machine(path: Path) -> None:
    notebook = read(path)
    assert not {"papermill", "language_info", "widgets"} & set(notebook.metadata)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"} and tags(cell) <= TAGS


@every
def test_cells_are_few_and_code_is_short(path: Path) -> None:
    notebook = read(path)
    assert len(notebook.cells) <= MOST_CELLS
    assert [n for n, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code" and len(cell.source.splitlines()) > MOST_LINES] == []


@lessons
def test_there_is_at_least_as_much_prose_as_code(path: Path) -> None:
    notebook = read(path)
    assert words(prose(notebook)) >= words(code(notebook))


@every
def test_it_opens_with_its_title_then_its_parameters(path: Path) -> None:
    first, second = read(path).cells[:2]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and path.stem[:2] in first.source.splitlines()[0]
    assert "parameters" in tags(second)


@numbered
def test_it_ends_with_findings_doubts_and_exercises(path: Path) -> None:
    text = "\n".join(cell.source for cell in prose(read(path)))
    places = [text.find(f"\n## {heading}\n") for heading in ("What we found", "What could be wrong", "Exercises")]
    places[0] = max(places[0], 0 if text.startswith("## What we found\n") else -1)
    assert -1 not in places and places == sorted(places)


@numbered
def test_a_page_with_results_says_that_the_model_is_a_model_organism(path: Path) -> None:
    if path.stem == "01_dataset":
        pytest.skip("shows no results of a model")
    assert "model organism" in " ".join(" ".join(cell.source for cell in prose(read(path))).split())


# -------------------------------------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize("path", [*NUMBERED, *SOLUTIONS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_it_takes_exactly_the_four_parameters(path: Path) -> None:
    (cell,) = [cell for cell in read(path).cells if "parameters" in tags(cell)]
    found = {}
    for line in tree(cell).body:
        assert isinstance(line, ast.AnnAssign), "a parameter is a typed assignment"
        found[line.target.id] = (line.annotation.id, ast.literal_eval(line.value))
    assert found == PARAMETERS and list(found) == list(PARAMETERS)


@every
def test_parameters_are_checked_before_anything_is_done(path: Path) -> None:
    """The first statement that is neither an import nor a parameter is the call of runs.check_parameters."""
    statements = [line for cell in code(read(path)) if "parameters" not in tags(cell) for line in tree(cell).body]
    first = next(line for line in statements if not isinstance(line, ast.Import | ast.ImportFrom))
    assert ast.unparse(first).startswith("runs.check_parameters(globals()")


@every
def test_no_star_imports_and_no_magics(path: Path) -> None:
    for cell in code(read(path)):
        for node in ast.walk(tree(cell)):
            assert not (isinstance(node, ast.ImportFrom) and any(name.name == "*" for name in node.names))


# ----------------------------------------------------------------------------------------------------------------- outputs
@every
def test_execution_counts_are_in_order(path: Path) -> None:
    counts = [cell.execution_count for cell in code(read(path))]
    assert counts in (list(range(1, len(counts) + 1)), [None] * len(counts) if path in SOLUTIONS else None)


@numbered
def test_at_least_two_cells_are_compared(path: Path) -> None:
    """nbval compares a cell only if it has both a count and stored output."""
    checked = [cell for cell in code(read(path)) if "nbval-check-output" in tags(cell)]
    assert len(checked) >= 2
    for cell in checked:
        assert "keep_output" in tags(cell), "refreshing would strip its output"
        assert cell.outputs and cell.execution_count


@every
def test_compared_outputs_are_plain_text(path: Path) -> None:
    for cell in code(read(path)):
        if "nbval-check-output" in tags(cell):
            for output in cell.outputs:
                assert output.output_type == "stream" and output.name == "stdout" or set(output.data) == {"text/plain"}


@every
def test_outputs_are_kept_only_where_asked_and_are_small(path: Path) -> None:
    for cell in code(read(path)):
        assert "keep_output" in tags(cell) or not cell.outputs
        for output in cell.outputs:
            assert output.output_type != "error"
            assert len(nbformat.v4.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])]))) <= MOST_OUTPUT


@every
def test_no_absolute_paths(path: Path) -> None:
    """Images are left out: base64 may hold any letters."""
    for cell in read(path).cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts += [output.get("text", "")] + [str(v) for kind, v in output.get("data", {}).items() if not kind.startswith("image/")]
        for text in texts:
            assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt|var|usr|private)/|\b[A-Z]:\\", text)
            assert str(runs.ROOT) not in text


# --------------------------------------------------------------------------------------------------------------- solutions
@solutions
def test_a_solution_keeps_no_output(path: Path) -> None:
    assert all(tags(cell) <= {"parameters"} and not cell.outputs for cell in code(read(path)))
