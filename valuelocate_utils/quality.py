"""What the texts of a dataset are like: near-duplicates, repeated wording, what gives a course away, what blind readers say.

Nothing here knows a label that it is to predict, and every measure is a plain table or number; limits are set where they are used.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, diags_array
from scipy.stats import binomtest

from .schwartz import DIMENSIONS, OPPOSITE
from .valueinsight import SIDES, DatasetError, Description, Question, ValueInsight

if TYPE_CHECKING:
    from wordllama.inference import WordLlamaInference

# From this cosine on, two texts tell one situation in other words (the issue of the dataset set the figure before any was measured).
NEAR = 0.90

# Names of values and dimensions: a text that says them could be answered from the word alone.
VALUE_NAMES = re.compile(
    r"\b(?:openness|self-direction|stimulation|hedonis\w*|achievement\w*|power|powerful|security|tradition\w*|conform\w*"
    r"|benevolen\w*|universalis\w*|transcend\w*|conservation|conservative|enhancement)\b",
    re.IGNORECASE,
)
PRONOUN = re.compile(r"\b(?:you|your|yours|yourself|i|my|me|myself)\b", re.IGNORECASE)
NEGATION = re.compile(r"\b(?:not|never|don't)\b", re.IGNORECASE)
WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; an inner apostrophe stays."""
    return WORDS.findall(text.lower())


# ------------------------------------------------------------------------------------------------------------ single records
def fault(record: Question | Description) -> str | None:
    """The first rule of wording that a record breaks, or None; the schema has seen it already.

    No text names a value. A course begins in lower case, ends without a full stop, has no pronoun that would read wrongly in
    both "Would you ...?" and "I would ...", is an act and not a negation, and is at most four words longer than the other.
    """
    texts = [record.question, *(getattr(record, side) for side in SIDES)] if isinstance(record, Question) else [record.text]
    if named := next((m for text in texts if (m := VALUE_NAMES.search(text))), None):
        return f"names a value ({named[0].lower()})"
    if isinstance(record, Description):
        return None
    for course in texts[1:]:
        if course[0].isupper() or course[-1] in ".!?":
            return "a course begins with a capital or ends with a full stop"
        if PRONOUN.search(course):
            return "a course says you or I"
        if NEGATION.search(course):
            return "a course is a negation"
    if abs(len(record.expresses.split()) - len(record.rejects.split())) > 4:
        return "the courses differ in length"
    return None


# ---------------------------------------------------------------------------------------------------------------- likeness
@cache
def _embedder() -> WordLlamaInference:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    import wordllama

    root.handlers[:], root.level = handlers, level  # its import has every library's messages printed
    # 0.4.0 looks for its tokenizer beside the package only if that folder is named as its cache; it then needs no network.
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


def embed(texts: Iterable[str]) -> np.ndarray:
    """Sentence embeddings [text, 256], of unit length: WordLlama's static vectors (l2_supercat), which ship with its package."""
    texts = list(texts)
    if not texts:
        return np.empty((0, 256), dtype=np.float32)
    return np.asarray(_embedder().embed(texts, norm=True), dtype=np.float32)


def nearest(embedded: np.ndarray, among: np.ndarray | None = None, block: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """For each row the largest cosine to a row of `among` and that row's number; without `among`, to any *other* row.

    Args:
        embedded: [text, dim], unit length.
        among: [other, dim], unit length.
        block: rows compared at a time; 15,000 texts at once would take a gigabyte.
    """
    others = embedded if among is None else among
    cosines, rows = np.full(len(embedded), -1.0, dtype=np.float32), np.full(len(embedded), -1)
    if not len(others):
        return cosines, rows
    for start in range(0, len(embedded), block):
        part = embedded[start : start + block] @ others.T
        if among is None:
            part[np.arange(len(part)), np.arange(start, start + len(part))] = -1.0
        rows[start : start + block] = part.argmax(axis=1)
        cosines[start : start + block] = part.max(axis=1)
    return cosines, rows


def sequences(texts: Iterable[str], n: int = 8) -> Counter[str]:
    """How many texts hold each sequence of `n` consecutive words (a text counts once)."""
    counts: Counter[str] = Counter()
    for text in texts:
        found = words(text)
        counts.update({" ".join(found[i : i + n]) for i in range(len(found) - n + 1)})
    return counts


def distinct_openings(texts: Sequence[str] | pd.Series, n: int = 4) -> float:
    """The number of different first `n` words, as a share of the number of texts."""
    return len({" ".join(words(text)[:n]) for text in texts}) / len(texts)


def reading_ease(text: str) -> float:
    """Flesch's reading ease (1948): 206.835 - 1.015 words a sentence - 84.6 syllables a word; syllables are runs of vowels, a
    silent final e not counted. About 60-70 is plain English."""
    found = words(text)
    sentences = max(1, len(re.findall(r"[.!?]+(?=\s|$)", text)))
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeiouy])e$", "", word)))) for word in found)
    return 206.835 - 1.015 * len(found) / sentences - 84.6 * syllables / len(found)


# -------------------------------------------------------------------------------------------------- what gives a course away
def shape(questions: pd.DataFrame) -> pd.DataFrame:
    """What can be known of a question's courses without reading a word, expressing minus rejecting: `words` and `characters`
    (differences and their signs) and `first` (+1 if the scene names the expressing course first, else -1)."""
    count = {side: questions[side].str.split().str.len() for side in SIDES}
    size = {side: questions[side].str.len() for side in SIDES}
    table = pd.DataFrame({"words": count["expresses"] - count["rejects"], "characters": size["expresses"] - size["rejects"]})
    return table.assign(
        more_words=np.sign(table["words"]), more_characters=np.sign(table["characters"]), first=np.where(questions["first"] == "expresses", 1, -1)
    ).astype(float)


def leans(data: ValueInsight, by: str) -> pd.Series:
    """How far a logistic regression trained on `locate` leans to the expressing course of each `test` question, in log-odds: above
    0 it is right. It sees the features of one course minus those of the other, in either order, so chance is one half.

    Args:
        by: `words`, the courses' words and word pairs; `shape`, length and position alone, see `shape`. One classifier a
            dimension, since a word means different things in each.
    """
    from sklearn.linear_model import LogisticRegression

    found = []
    for dimension in DIMENSIONS:
        parts = [data.select(dimension, split) for split in ("locate", "test")]
        known, asked = _words(*parts) if by == "words" else map(csr_array, (shape(part).to_numpy() for part in parts))
        order = np.where(np.arange(known.shape[0]) % 2, 1.0, -1.0)
        model = LogisticRegression(fit_intercept=False, max_iter=2000).fit(diags_array(order) @ known, order)
        found.append(pd.Series(model.decision_function(asked), index=parts[1].index))
    return pd.concat(found)


def told_apart(lean: pd.Series, questions: pd.DataFrame) -> pd.DataFrame:
    """How often `leans` are right: one row a dimension and one for `all`; `n`, `accuracy` (a lean of 0 counts half), and the 95%
    interval `low`, `high` (Wilson)."""
    calls = (lean > 0) + 0.5 * (lean == 0)
    groups = {d: calls[questions.loc[calls.index, "dimension"] == d] for d in DIMENSIONS} | {"all": calls}
    return pd.DataFrame({d: {"n": len(c), "accuracy": c.mean(), **_interval(c)} for d, c in groups.items()}).T.astype({"n": int})


def _words(known: pd.DataFrame, asked: pd.DataFrame) -> tuple[csr_array, csr_array]:
    """Expressing minus rejecting words and word pairs, [question, feature], of both tables; the vocabulary is that of the first."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2), binary=True)
    counter.fit(pd.concat([known[side] for side in SIDES]))
    first, second = (csr_array(counter.transform(part["expresses"]).astype(float) - counter.transform(part["rejects"])) for part in (known, asked))
    return first, second


def _interval(calls: pd.Series) -> dict[str, float]:
    found = binomtest(round(float(calls.sum())), len(calls)).proportion_ci(method="wilson")
    return {"low": found.low, "high": found.high}


# ------------------------------------------------------------------------------------------------------------ blind readings
def readings(path: Path, questions: pd.DataFrame) -> pd.DataFrame:
    """Blind readings from a CSV file, indexed by `question_id`, see `agreement`; only those of the questions at hand.

    Raises:
        DatasetError: the file is missing or a column or an entry is none of the known ones.
    """
    try:
        table = pd.read_csv(path, index_col="question_id")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path.name} cannot be read ({error}): restore it from git") from None
    known = {"shown_a": SIDES, "a": DIMENSIONS, "b": DIMENSIONS, "chief": ("a", "b")}
    for column, names in known.items():
        if column not in table or not table[column].isin(names).all():
            raise DatasetError(f"{path.name}: column {column!r} must hold {', '.join(names)} alone: restore the file from git")
    return table[table.index.isin(questions.index)]


def agreement(readings: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Blind readings against the labels.

    Which end of its axis a scene is "about" no reader can know for certain: a conflict of safety and adventure may have been
    written for either. What each course serves can be read, so this is what readers are asked first.

    Args:
        readings: indexed by question id: `shown_a`, the side shown as course A; `a`, `b`, the dimension that each course serves
            most; `chief`, whether the scene is chiefly about what `a` or what `b` serves.
        questions: `ValueInsight.questions`.

    Returns:
        One row a dimension of the dataset and one for `all`: `n`; `dimension`, the share in which the expressing course was read
        as serving the labelled dimension; `course`, among the questions in which just one course was read so, the share in which it
        was the expressing one; `axis`, the share in which it was read as serving the labelled dimension or its opposite; `chief`,
        the share in which the scene was held to be chiefly about the labelled dimension.
    """
    labels, read = questions.loc[readings.index, "dimension"], served(readings)
    hits = read.eq(labels, axis=0)
    chief = readings["a"].where(readings["chief"] == "a", readings["b"])
    table = pd.DataFrame({
        "dimension": hits["expresses"], "course": hits["expresses"].where(hits["expresses"] != hits["rejects"]),
        "axis": hits["expresses"] | (read["expresses"] == labels.map(OPPOSITE)), "chief": chief == labels,
    }).astype(float)  # fmt: skip
    groups = {d: table[labels == d] for d in DIMENSIONS} | {"all": table}
    return pd.DataFrame({d: {"n": len(group), **group.mean()} for d, group in groups.items()}).T.astype({"n": int})


def served(readings: pd.DataFrame) -> pd.DataFrame:
    """The dimension that each course was read as serving: columns `expresses`, `rejects`, one row a reading."""
    first = readings["shown_a"] == "expresses"
    return pd.DataFrame({"expresses": readings["a"].where(first, readings["b"]), "rejects": readings["b"].where(first, readings["a"])})
