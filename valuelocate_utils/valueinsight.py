"""The ValueInsight dataset: records, loading with line-level errors, splits, prompt renderings.

The dataset follows the design of Su et al. (2025), section 3.1, and shares no text with theirs: value descriptions are put into
the prompt to make a model take a value's side, situational questions ask what "you" think and would do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from .schwartz import ASPECTS, DIMENSIONS, VALUES_OF, Aspect, Dimension

Split = Literal["locate", "tune", "test"]
SPLITS: tuple[str, ...] = ("locate", "tune", "test")
Rendering = Literal["open", "choice"]
Side = Literal["expresses", "rejects"]
SIDES: tuple[str, ...] = ("expresses", "rejects")

TOPICS: tuple[str, ...] = (
    "work", "career_choice", "management", "money", "housing", "family", "raising_children", "old_parents", "friendship",
    "love_and_marriage", "neighbours", "village_or_city", "school", "university", "science", "health", "food", "sport", "travel",
    "arts_and_music", "fashion", "internet_and_games", "media_and_news", "faith_and_ritual", "holidays_and_customs",
    "law_and_citizenship", "town_politics", "climate_and_nature", "animals", "strangers_and_migrants",
)  # fmt: skip

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.\-]+$")]


class DatasetError(ValueError):
    """A dataset file that cannot be used; the message names the file, the line and the reason."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Key
    dimension: Dimension
    value: Key
    split: Split

    @model_validator(mode="after")
    def _value_belongs(self) -> _Record:
        if self.value not in VALUES_OF[self.dimension]:
            raise ValueError(f"value {self.value!r} is not one of {self.dimension}'s: {', '.join(VALUES_OF[self.dimension])}")
        return self


def _word_range(text: str, low: int, high: int, what: str) -> None:
    n = len(text.split())
    if not low <= n <= high:
        raise ValueError(f"{what} has {n} words, must have {low}-{high}")


class Description(_Record):
    """A value description (persona): second person, 30-90 words, one aspect of one refined value."""

    aspect: Aspect
    text: Text

    @model_validator(mode="after")
    def _length(self) -> Description:
        _word_range(self.text, 30, 90, "text")
        return self


class Question(_Record):
    """A situational question and its two courses. `first` is the course that the scene names first."""

    topic: Literal[TOPICS]  # type: ignore[valid-type]
    family: Key
    question: Text
    expresses: Text
    rejects: Text
    first: Side

    @model_validator(mode="after")
    def _lengths(self) -> Question:
        _word_range(self.question, 35, 90, "question")
        for side in SIDES:
            _word_range(getattr(self, side), 3, 14, side)
        if not self.question.endswith("?"):
            raise ValueError("question does not end with a question mark")
        return self


def _read(path: Path, record: type[_Record]) -> list[_Record]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path.name} is not UTF-8 (byte {error.start}); restore the file from git") from None
    for n, line in enumerate(lines, 1):
        try:
            rows.append(record.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "record"
            raise DatasetError(f"{path.name} line {n}: {field}: {first['msg']}; mend the line or restore the file from git") from None
    return rows


@dataclass(frozen=True)
class ValueInsight:
    """The dataset as two tables indexed by `id`; columns are the fields of Description and Question."""

    descriptions: pd.DataFrame
    questions: pd.DataFrame
    sha256: str

    def select(self, dimension: str, split: str, limit: int | None = None) -> pd.DataFrame:
        """Questions of one dimension and split, in file order; with `limit`, that many spread evenly over the order.

        Raises:
            DatasetError: no such dimension or split.
        """
        _known(dimension=(dimension, DIMENSIONS), split=(split, SPLITS))
        return spread(self.questions.query("dimension == @dimension and split == @split"), limit)

    def personas(self, dimension: str, aspect: str, split: str) -> pd.DataFrame:
        """Descriptions of one dimension, aspect and split.

        Raises:
            DatasetError: no such dimension, aspect or split.
        """
        _known(dimension=(dimension, DIMENSIONS), aspect=(aspect, ASPECTS), split=(split, SPLITS))
        return self.descriptions.query("dimension == @dimension and aspect == @aspect and split == @split")


def _known(**given: tuple[str, tuple[str, ...]]) -> None:
    for what, (name, names) in given.items():
        if name not in names:
            raise DatasetError(f"unknown {what} {name!r}: choose one of {', '.join(names)}")


def spread(table: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most `limit` rows, evenly spaced, so that every value and topic keeps its share; all of them for None."""
    if limit is None or limit >= len(table):
        return table
    return table.iloc[[i * len(table) // limit for i in range(limit)]]


def load(folder: Path) -> ValueInsight:
    """Read and check every `descriptions.*.jsonl` and `questions.*.jsonl` of a folder.

    Raises:
        DatasetError: no files, a line that breaks the schema (file and line are named), an id used twice, a family
            whose questions lie in two splits, or a (dimension, aspect) without descriptions.
    """
    folder, tables, digest = Path(folder), {}, hashlib.sha256()
    for kind, record in (("descriptions", Description), ("questions", Question)):
        paths = sorted(folder.glob(f"{kind}.*.jsonl"))
        if not paths:
            raise DatasetError(f"no {kind}.*.jsonl in {folder}: restore the folder from git or name another with DATA=")
        rows = [(path.name, row) for path in paths for row in _read(path, record)]
        for path in paths:
            digest.update(b"%s\0%d\0" % (path.name.encode(), path.stat().st_size) + path.read_bytes())
        if not rows:
            raise DatasetError(f"the {kind}.*.jsonl files of {folder.name} hold no records: restore them from git")
        table = pd.DataFrame([row.model_dump() for _, row in rows])
        if (twice := table["id"].duplicated()).any():
            at = int(twice.to_numpy().argmax())
            raise DatasetError(f"{rows[at][0]}: id {table['id'][at]!r} is used twice; give one of the records a new id")
        tables[kind] = table.set_index("id")
    _check_families(tables["questions"])
    _check_cells(tables["descriptions"], folder)
    return ValueInsight(**tables, sha256=digest.hexdigest())


def _check_families(questions: pd.DataFrame) -> None:
    splits = questions.groupby("family")["split"].nunique()
    if (splits > 1).any():
        family = splits.idxmax()
        raise DatasetError(f"family {family!r} lies in more than one split; questions of one situation must share a split")


def _check_cells(descriptions: pd.DataFrame, folder: Path) -> None:
    present = set(zip(descriptions["dimension"], descriptions["aspect"]))
    for dimension, aspect in ((d, a) for d in DIMENSIONS for a in ASPECTS):
        if (dimension, aspect) not in present:
            raise DatasetError(f"{folder.name} holds no description of {dimension}, {aspect}; each of the eight needs some")


def render(question: pd.Series, description: str | None, rendering: Rendering, first: Side | None = None) -> str:
    """The user's message: description (if any), question and, in the `choice` rendering, both courses.

    Args:
        question: a row of `ValueInsight.questions`.
        description: a persona's text, or None for the unconditioned prompt.
        rendering: `open` is the paper's; `choice` adds "Would you <course> or <course>?".
        first: the course named first in `choice`; default, the one the scene names first.
    """
    text = question["question"]
    if rendering == "choice":
        first = first or question["first"]
        second = SIDES[1 - SIDES.index(first)]
        text = f"{text} Would you {question[first]} or {question[second]}?"
    return f"{description}\n\n{text}" if description else text


def draw_descriptions(questions: pd.DataFrame, personas: pd.DataFrame, seed: int) -> pd.Series:
    """One description id for each question, drawn at random but stable: a question's draw depends on its id, the
    candidates and the seed alone, so that a subset of questions keeps its descriptions."""
    ids = sorted(personas.index)
    if not ids:
        raise DatasetError("no descriptions to draw from: the wanted dimension, aspect and split have none")

    def draw(question_id: str) -> str:
        digest = hashlib.sha256(f"{seed}/{question_id}".encode()).digest()
        return ids[int.from_bytes(digest[:8], "big") % len(ids)]

    return pd.Series([draw(q) for q in questions.index], index=questions.index, name="description_id", dtype=object)
