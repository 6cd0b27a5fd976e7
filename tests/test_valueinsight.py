"""The dataset module on hand-made folders, and the shipped data against the dataset's own promises."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from valuelocate_utils import quality, valueinsight
from valuelocate_utils.schwartz import ASPECTS, DIMENSIONS, VALUES_OF
from valuelocate_utils.valueinsight import SPLITS, DatasetError, ValueInsight

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "valueinsight"

Record = dict[str, Any]
CELLS = list(itertools.product(DIMENSIONS, ASPECTS))


def words(n: int, end: str = "") -> str:
    return " ".join(["word"] * n) + end


def description(dimension: str = "conservation", aspect: str = "positive", **fields: Any) -> Record:
    value = VALUES_OF[dimension][0]
    record = {"id": f"{value}.{aspect}", "dimension": dimension, "value": value, "split": "locate", "aspect": aspect, "text": words(30)}
    return record | fields


def question(n: int = 1, **fields: Any) -> Record:
    record = {
        "id": f"tradition.work.{n:02d}", "dimension": "conservation", "value": "tradition", "split": "locate", "topic": "work",
        "family": f"family.{n}", "question": words(40, "?"), "expresses": "keep the old way", "rejects": "try the new way", "first": "expresses",
    }  # fmt: skip
    return record | fields


def lines(*records: Record | str) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A correct dataset: one description a cell, three questions of conservation."""
    (tmp_path / "descriptions.all.jsonl").write_text(lines(*(description(*cell) for cell in CELLS)), encoding="utf-8")
    (tmp_path / "questions.a.jsonl").write_text(lines(question(1), question(2), question(3)), encoding="utf-8")
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------- loading
def test_load_gives_two_tables_indexed_by_id(folder: Path) -> None:
    data = valueinsight.load(folder)
    assert list(data.questions.index) == [f"tradition.work.{n:02d}" for n in (1, 2, 3)]
    assert set(data.questions.columns) == set(question()) - {"id"}
    assert set(data.descriptions.columns) == set(description()) - {"id"}
    assert len(data.descriptions) == 8


def test_load_reads_every_file_of_a_kind(folder: Path) -> None:
    (folder / "questions.b.jsonl").write_text(lines(question(4)), encoding="utf-8")
    (folder / "notes.jsonl").write_text("not a record\n", encoding="utf-8")
    assert list(valueinsight.load(folder).questions["family"]) == [f"family.{n}" for n in (1, 2, 3, 4)]


def test_digest_follows_the_bytes(folder: Path) -> None:
    before = valueinsight.load(folder).sha256
    assert valueinsight.load(folder).sha256 == before and re.fullmatch("[0-9a-f]{64}", before)
    path = folder / "questions.a.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("keep the old way", "keep an old way"), encoding="utf-8")
    assert valueinsight.load(folder).sha256 != before


def broken(**fields: Any) -> Record:
    return question(2, **fields)


def without(field: str) -> Record:
    return {k: v for k, v in question(2).items() if k != field}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(lines(question(2))[:-20], "JSON", id="broken JSON"),
        pytest.param("", "JSON", id="empty line"),
        pytest.param('["a list"]', "record", id="not an object"),
        pytest.param(without("topic"), "topic: Field required", id="missing field"),
        pytest.param(broken(note="x"), "note: Extra", id="unknown field"),
        pytest.param(broken(value="achievement"), "value 'achievement' is not one of conservation's", id="value of another dimension"),
        pytest.param(broken(value="face"), "value 'face' is not one of conservation's", id="border value"),
        pytest.param(broken(dimension="power"), "dimension: ", id="unknown dimension"),
        pytest.param(broken(split="train"), "split: ", id="unknown split"),
        pytest.param(broken(topic="space"), "topic: ", id="unknown topic"),
        pytest.param(broken(first="keeps"), "first: ", id="unknown side"),
        pytest.param(broken(id="Two Words"), "id: ", id="id with a space"),
        pytest.param(broken(question=words(34, "?")), "question has 34 words, must have 35-90", id="question too short"),
        pytest.param(broken(question=words(91, "?")), "question has 91 words", id="question too long"),
        pytest.param(broken(question=words(40, ".")), "question mark", id="no question mark"),
        pytest.param(broken(expresses="keep it"), "expresses has 2 words, must have 3-14", id="course too short"),
        pytest.param(broken(rejects=words(15)), "rejects has 15 words", id="course too long"),
        pytest.param(broken(rejects="   "), "rejects: ", id="blank course"),
    ],
)
def test_a_bad_question_names_file_line_and_reason(folder: Path, bad: Record | str, reason: str) -> None:
    (folder / "questions.a.jsonl").write_text(lines(question(1), bad, question(3)), encoding="utf-8")
    with pytest.raises(DatasetError, match=f"^questions.a.jsonl line 2: .*{re.escape(reason)}") as caught:
        valueinsight.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"text": words(29)}, "text has 29 words, must have 30-90"), ({"text": words(91)}, "text has 91 words"), ({"aspect": "neutral"}, "aspect: ")],
)
def test_a_bad_description_names_file_line_and_reason(folder: Path, fields: Record, reason: str) -> None:
    (folder / "descriptions.x.jsonl").write_text(lines(description(id="x.1"), description(id="x.2", **fields)), encoding="utf-8")
    with pytest.raises(DatasetError, match=f"^descriptions.x.jsonl line 2: .*{reason}"):
        valueinsight.load(folder)


@pytest.mark.parametrize("n", [35, 90])
def test_word_limits_are_inclusive(folder: Path, n: int) -> None:
    (folder / "questions.a.jsonl").write_text(lines(question(1, question=words(n, "?"))), encoding="utf-8")
    assert len(valueinsight.load(folder).questions) == 1


def test_an_id_used_twice_names_the_second_file_and_the_id(folder: Path) -> None:
    (folder / "questions.b.jsonl").write_text(lines(question(4), question(2, family="other")), encoding="utf-8")
    with pytest.raises(DatasetError, match="^questions.b.jsonl.*'tradition.work.02'.*twice"):
        valueinsight.load(folder)


def test_a_family_in_two_splits_is_named(folder: Path) -> None:
    (folder / "questions.b.jsonl").write_text(lines(question(4, family="family.2", split="test")), encoding="utf-8")
    with pytest.raises(DatasetError, match="'family.2'.*more than one split"):
        valueinsight.load(folder)


def test_a_family_within_one_split_is_fine(folder: Path) -> None:
    (folder / "questions.b.jsonl").write_text(lines(question(4, family="family.2")), encoding="utf-8")
    assert (valueinsight.load(folder).questions["family"] == "family.2").sum() == 2


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_without_descriptions_is_named(folder: Path, cell: tuple[str, str]) -> None:
    (folder / "descriptions.all.jsonl").write_text(lines(*(description(*c) for c in CELLS if c != cell)), encoding="utf-8")
    with pytest.raises(DatasetError, match=", ".join(cell)):
        valueinsight.load(folder)


@pytest.mark.parametrize("kind", ["descriptions", "questions"])
def test_a_folder_without_files_of_a_kind_says_so(folder: Path, kind: str) -> None:
    for path in folder.glob(f"{kind}.*"):
        path.unlink()
    with pytest.raises(DatasetError, match=re.escape(f"no {kind}.*.jsonl")):
        valueinsight.load(folder)


def test_an_empty_folder_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="DATA="):
        valueinsight.load(tmp_path)


@pytest.mark.parametrize("kind", ["descriptions", "questions"])
def test_files_without_records_are_a_dataset_error(folder: Path, kind: str) -> None:
    for path in folder.glob(f"{kind}.*"):
        path.write_text("", encoding="utf-8")
    with pytest.raises(DatasetError, match=kind):
        valueinsight.load(folder)


def test_bytes_that_are_not_utf8_are_a_dataset_error(folder: Path) -> None:
    (folder / "questions.a.jsonl").write_bytes(lines(question(1, rejects="try the café way")).encode("latin-1"))
    with pytest.raises(DatasetError, match="questions.a.jsonl"):
        valueinsight.load(folder)


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_only_a_newline_ends_a_line(folder: Path, separator: str) -> None:
    """JSON allows these characters unescaped in a string; they are no line ends of a jsonl file."""
    text = words(20) + separator + words(20, "?")
    (folder / "questions.a.jsonl").write_text(lines(question(1, question=text)), encoding="utf-8")
    assert valueinsight.load(folder).questions["question"].tolist() == [text]


# ---------------------------------------------------------------------------------------------------------------- choosing
def table(n: int, dimension: str = "conservation", split: str = "locate") -> pd.DataFrame:
    return pd.DataFrame([question(i, dimension=dimension, split=split) for i in range(n)]).set_index("id")


def holding(questions: pd.DataFrame) -> ValueInsight:
    return ValueInsight(pd.DataFrame([description(*cell) for cell in CELLS]).set_index("id"), questions, "")


def test_select_keeps_one_dimension_and_split_in_file_order() -> None:
    others = [table(3, split="test").add_prefix("t.", axis=0), table(3, "self_enhancement").add_prefix("s.", axis=0)]
    data = holding(pd.concat([others[0], table(4), others[1]]))
    assert list(data.select("conservation", "locate").index) == [f"tradition.work.{n:02d}" for n in range(4)]
    assert list(data.select("conservation", "test").index) == [f"t.tradition.work.{n:02d}" for n in range(3)]
    assert data.select("openness_to_change", "locate").empty


@pytest.mark.parametrize(("n", "limit"), [(10, 4), (10, 3), (100, 7), (5, 4), (9, 1)])
def test_select_spreads_a_limit_over_the_file(n: int, limit: int) -> None:
    data = holding(table(n))
    at = [data.questions.index.get_loc(i) for i in data.select("conservation", "locate", limit).index]
    gaps = [b - a for a, b in itertools.pairwise([*at, n])]
    assert len(at) == limit and at[0] == 0
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("limit", [None, 5, 6])
def test_select_without_a_binding_limit_is_everything(limit: int | None) -> None:
    assert len(holding(table(5)).select("conservation", "locate", limit)) == 5


def test_personas_are_those_of_the_cell() -> None:
    data = holding(table(1))
    assert list(data.personas("conservation", "negative", "locate").index) == ["security_personal.negative"]
    assert data.personas("conservation", "negative", "test").empty


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda data: data.select("power", "tune"), "unknown dimension 'power': choose one of openness_to_change, "),
        (lambda data: data.select("conservation", "train"), "unknown split 'train': choose one of locate, tune, test"),
        (lambda data: data.personas("Conservation", "positive", "tune"), "unknown dimension 'Conservation'"),
        (lambda data: data.personas("conservation", "+", "tune"), "unknown aspect '+': choose one of positive, negative"),
    ],
)
def test_an_unknown_name_is_refused_and_the_known_ones_listed(ask, line: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(line)):
        ask(holding(table(1)))


def personas(ids: str) -> pd.DataFrame:
    return pd.DataFrame({"text": "t"}, index=list(ids))


def test_a_subset_of_questions_keeps_its_descriptions() -> None:
    questions = table(40)
    whole = valueinsight.draw_descriptions(questions, personas("abcde"), 0)
    part = valueinsight.draw_descriptions(questions.iloc[[30, 3, 17]], personas("abcde"), 0)
    assert part.to_dict() == {i: whole[i] for i in questions.index[[30, 3, 17]]}
    assert list(part.index) == list(questions.index[[30, 3, 17]])


def test_the_order_of_candidates_does_not_matter() -> None:
    a, b = (valueinsight.draw_descriptions(table(40), personas(ids), 0) for ids in ("abcde", "ecdab"))
    pd.testing.assert_series_equal(a, b)


def test_draws_change_with_the_seed_and_use_every_candidate_alike() -> None:
    draws = [valueinsight.draw_descriptions(table(1000), personas("abcd"), seed) for seed in (0, 1)]
    for drawn in draws:  # 4 standard errors of a share of 1/4 at 1000 draws are 0.055
        assert drawn.value_counts(normalize=True).to_dict() == pytest.approx(dict.fromkeys("abcd", 0.25), abs=0.055)
    assert (draws[0] == draws[1]).mean() == pytest.approx(0.25, abs=0.055)


# --------------------------------------------------------------------------------------------------------------- rendering
ROW = pd.Series({"question": "Stay or go?", "expresses": "stay at home", "rejects": "go out tonight", "first": "rejects"})


@pytest.mark.parametrize(
    ("persona", "rendering", "first", "expected"),
    [
        (None, "open", None, "Stay or go?"),
        ("You stay.", "open", None, "You stay.\n\nStay or go?"),
        ("You stay.", "open", "expresses", "You stay.\n\nStay or go?"),
        (None, "choice", None, "Stay or go? Would you go out tonight or stay at home?"),
        (None, "choice", "rejects", "Stay or go? Would you go out tonight or stay at home?"),
        (None, "choice", "expresses", "Stay or go? Would you stay at home or go out tonight?"),
        ("You stay.", "choice", "expresses", "You stay.\n\nStay or go? Would you stay at home or go out tonight?"),
    ],
)
def test_render(persona: str | None, rendering: str, first: str | None, expected: str) -> None:
    assert valueinsight.render(ROW, persona, rendering, first) == expected


# --------------------------------------------------------------------------------------------------------- the shipped data
@pytest.fixture(scope="module")
def shipped() -> ValueInsight:
    return valueinsight.load(SHIPPED)


def test_shipped_has_enough_questions(shipped: ValueInsight) -> None:
    counts = shipped.questions.groupby(["dimension", "split"]).size().unstack()
    assert set(counts.index) == set(DIMENSIONS) and set(counts.columns) == set(SPLITS)
    assert counts.sum(axis=1).min() >= 400
    assert counts["test"].min() >= 100


def test_shipped_has_enough_descriptions(shipped: ValueInsight) -> None:
    counts = shipped.descriptions.groupby(["dimension", "aspect"]).size()
    assert set(counts.index) == set(CELLS)
    assert counts.min() >= 20


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("cell", CELLS)
def test_shipped_has_descriptions_for_every_split(shipped: ValueInsight, cell: tuple[str, str], split: str) -> None:
    assert len(shipped.personas(*cell, split)) >= 5


@pytest.mark.parametrize("column", ["family", "question"])
def test_shipped_splits_share_no_question(shipped: ValueInsight, column: str) -> None:
    parts = [set(shipped.questions.loc[shipped.questions["split"] == split, column].str.casefold()) for split in SPLITS]
    assert all(parts) and not any(a & b for a, b in itertools.combinations(parts, 2))


@pytest.mark.parametrize("text", [lambda d: d.questions["question"], lambda d: d.descriptions["text"]], ids=["questions", "descriptions"])
def test_shipped_texts_are_all_different(shipped: ValueInsight, text: Callable[[ValueInsight], pd.Series]) -> None:
    plain = text(shipped).str.casefold().str.replace(r"\W+", " ", regex=True)
    assert plain[plain.duplicated()].empty


def test_shipped_covers_every_value_and_topic(shipped: ValueInsight) -> None:
    for dimension in DIMENSIONS:
        assert set(shipped.questions.query("dimension == @dimension")["value"]) == set(VALUES_OF[dimension])
    assert set(shipped.questions["topic"]) == set(valueinsight.TOPICS)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_shipped_first_course_is_balanced(shipped: ValueInsight, dimension: str) -> None:
    first = shipped.questions.query("dimension == @dimension")["first"]
    assert 0.45 <= (first == "expresses").mean() <= 0.55


def test_shipped_courses_are_equally_long(shipped: ValueInsight) -> None:
    expresses, rejects = (shipped.questions[side].str.split().str.len().mean() for side in valueinsight.SIDES)
    assert 0.95 <= expresses / rejects <= 1.05


def test_shipped_courses_differ(shipped: ValueInsight) -> None:
    same = shipped.questions["expresses"].str.casefold() == shipped.questions["rejects"].str.casefold()
    assert not shipped.questions.index[same].tolist()


@pytest.mark.parametrize(("kind", "record"), [("questions", valueinsight.Question), ("descriptions", valueinsight.Description)])
def test_shipped_texts_keep_the_rules_of_wording(shipped: ValueInsight, kind: str, record: type) -> None:
    faults = {row["id"]: quality.fault(record(**row)) for row in getattr(shipped, kind).reset_index().to_dict("records")}
    assert {i: fault for i, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_shipped_questions_open_differently(shipped: ValueInsight, dimension: str) -> None:
    questions = shipped.questions.query("dimension == @dimension")["question"]
    openings = {" ".join(q.split()[:4]).casefold() for q in questions}
    assert len(openings) >= 0.4 * len(questions)
