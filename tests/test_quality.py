"""Measures of the texts against hand counts, brute force, and data made so that the answer is known."""

from __future__ import annotations

import itertools
import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from valuelocate_utils import quality, runs, valueinsight
from valuelocate_utils.schwartz import DIMENSIONS, OPPOSITE, VALUES_OF
from valuelocate_utils.valueinsight import Description, Question, ValueInsight


# ------------------------------------------------------------------------------------------------------------------- words
def test_words_drop_punctuation_and_keep_apostrophes() -> None:
    assert quality.words("Don't wait: Ana's café, 'now' or _never_?") == ["don't", "wait", "ana's", "café", "now", "or", "never"]


def test_a_sequence_counts_once_a_text() -> None:
    found = quality.sequences(["a b c a b c", "A, b: c!", "b c d"], n=3)
    assert found == {"a b c": 2, "b c a": 1, "c a b": 1, "b c d": 1}


def test_distinct_openings_are_a_share_of_the_texts() -> None:
    assert quality.distinct_openings(["One two three four five", "one two, three four six", "one two three five", "two"], 4) == 0.75


def test_reading_ease_of_a_text_counted_by_hand() -> None:
    # 2 sentences; 8 words; syllables the-1 cat-1 sat-1 you-1 make-1 a-1 decision-3 today-2
    assert quality.reading_ease("The cat sat. You make a decision today?") == pytest.approx(206.835 - 1.015 * 8 / 2 - 84.6 * 11 / 8)


# ------------------------------------------------------------------------------------------------------------------ faults
def question(**fields: str) -> Question:
    common = {"id": "tradition.work.01", "dimension": "conservation", "value": "tradition", "split": "locate", "topic": "work", "family": "f"}
    texts = {"question": " ".join(["word"] * 40) + "?", "expresses": "keep the old bench", "rejects": "build a new bench", "first": "rejects"}
    return Question(**common | texts | fields)


def test_a_plain_question_has_no_fault() -> None:
    assert quality.fault(question()) is None
    assert quality.fault(question(expresses="open the mine again", rejects="write a knot in iron")) is None  # mine, knot: no pronoun, no negation


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"question": "Security " + " ".join(["word"] * 40) + "?"}, r"names a value \(security\)"),
        ({"rejects": "sell to the conservatives now, powerful"}, r"names a value \(powerful\)"),
        ({"expresses": "Keep the old bench"}, "capital"),
        ({"expresses": "keep the old bench."}, "full stop"),
        ({"rejects": "build your own bench"}, "you or I"),
        ({"rejects": "do not build one"}, "negation"),
        ({"rejects": "build a new bench from the planks"}, None),
        ({"rejects": "build a new bench from the old planks there"}, "length"),
    ],
)
def test_faults_of_a_question(fields: dict[str, str], line: str | None) -> None:
    found = quality.fault(question(**fields))
    assert found is None if line is None else pd.Series([found]).str.contains(line).all()


@pytest.mark.parametrize(("text", "line"), [("You count " + "word " * 30, None), ("Your traditions " + "word " * 30, "names a value (traditions)")])
def test_faults_of_a_description(text: str, line: str | None) -> None:
    assert quality.fault(Description(id="a", dimension="conservation", value="tradition", split="locate", aspect="positive", text=text)) == line


def test_names_of_values_are_recognised_and_plain_words_left_alone() -> None:
    said = ("Security first", "traditions", "a conformist", "power", "safe", "powder", "conserve", "benevolently")
    assert [w for w in said if quality.VALUE_NAMES.search(w)] == ["Security first", "traditions", "a conformist", "power", "benevolently"]


# ---------------------------------------------------------------------------------------------------------------- likeness
def test_embeddings_have_unit_length_and_see_through_other_words() -> None:
    texts = ["The doctor treats a sick child at night.", "A physician cares for an ill kid this evening.", "The committee repainted the harbour wall."]
    embedded = quality.embed(texts)
    assert embedded.shape == (3, 256) and np.allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    assert embedded[0] @ embedded[1] > 0.5 and 0.3 > embedded[0] @ embedded[2]


def test_embedding_nothing_gives_no_rows() -> None:
    assert quality.embed([]).shape == (0, 256)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_nearest_is_that_of_brute_force(block: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 4))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    cosines, rows = quality.nearest(points, block=block)
    for i, point in enumerate(points):
        others = {j: float(point @ points[j]) for j in range(7) if j != i}
        assert rows[i] == max(others, key=others.get) and cosines[i] == pytest.approx(max(others.values()), abs=1e-6)


def test_nearest_among_others_may_be_a_copy() -> None:
    unit = np.eye(3, dtype=np.float32)
    cosines, rows = quality.nearest(unit[:1], unit[[1, 0, 2]])
    assert cosines.tolist() == [1.0] and rows.tolist() == [1]
    cosines, rows = quality.nearest(unit[:2], unit[:0])
    assert cosines.tolist() == [-1.0, -1.0] and rows.tolist() == [-1, -1]


def test_the_embedder_needs_no_network_and_leaves_logging_alone() -> None:
    code = (
        "import logging, socket; socket.socket.connect = None\n"
        "from valuelocate_utils import quality; quality.embed(['word'])\n"
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"[] {logging.WARNING}", "")


# -------------------------------------------------------------------------------------------------- what gives a course away
def made(course, n: int = 240) -> ValueInsight:
    """`n` questions a dimension, two thirds for `locate` and one for `test`; `course(k, side, rng)` gives a course's text."""
    rng, rows = random.Random(0), []
    for d, k in itertools.product(DIMENSIONS, range(n)):
        sides = {side: course(k, side, rng) for side in valueinsight.SIDES}
        rows.append({"id": f"{d}.{k}", "dimension": d, "split": "test" if k % 3 == 2 else "locate", "first": rng.choice(valueinsight.SIDES), **sides})
    return ValueInsight(pd.DataFrame(), pd.DataFrame(rows).set_index("id"), "")


def plain(k: int, side: str, rng: random.Random) -> str:
    return " ".join(rng.choice(("row", "sow", "mow", "tow")) for _ in range(rng.choice((4, 5, 6))))


def telling(k: int, side: str, rng: random.Random) -> str:
    return plain(k, side, rng) + (" keep" if side == "expresses" else " leave")


def longer(k: int, side: str, rng: random.Random) -> str:
    return plain(k, side, rng) + (" row sow mow" if side == "expresses" else "")


def accuracy(data: ValueInsight, by: str) -> pd.DataFrame:
    return quality.told_apart(quality.leans(data, by), data.questions)


def test_a_telling_word_is_found_and_its_length_is_not() -> None:
    data = made(telling)
    assert accuracy(data, "words")["accuracy"].min() == 1.0
    assert accuracy(data, "shape").loc["all", "low"] > 0.9  # keep and leave differ by a letter


def test_a_telling_length_is_found() -> None:
    assert accuracy(made(longer), "shape").loc["all", "accuracy"] > 0.9


@pytest.mark.parametrize("by", ["words", "shape"])
def test_courses_alike_are_told_apart_by_chance_alone(by: str) -> None:
    found = accuracy(made(plain), by)
    assert list(found.index) == [*DIMENSIONS, "all"] and found["n"].tolist() == [80] * 4 + [320]
    assert found.loc["all", "low"] < 0.5 < found.loc["all", "high"]


def test_a_telling_position_is_found() -> None:
    data = made(plain)
    data.questions["first"] = "rejects"
    assert accuracy(data, "shape").loc["all", "accuracy"] == 1.0


def test_the_test_split_teaches_nothing() -> None:
    data = made(telling)
    of_test = data.questions["split"] == "test"
    data.questions.loc[of_test, ["expresses", "rejects"]] = data.questions.loc[of_test, ["rejects", "expresses"]].to_numpy()
    assert accuracy(data, "words").loc["all", "accuracy"] == 0.0


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = accuracy(made(telling), "words").loc["all"]
    z, n = 1.959964, 320
    assert found["low"] == pytest.approx(n / (n + z**2), abs=1e-6) and found["high"] == pytest.approx(1.0)


def test_an_undecided_lean_counts_half() -> None:
    labels = pd.DataFrame({"dimension": list(DIMENSIONS)}, index=list("abcd"))
    found = quality.told_apart(pd.Series({"d": 0.0, "a": 2.0, "b": -1.0, "c": 0.5}), labels)
    assert found["accuracy"].to_dict() == dict(zip(DIMENSIONS, (1, 0, 1, 0.5))) | {"all": 0.625}


def test_shape_counts_words_and_letters() -> None:
    table = pd.DataFrame([{"expresses": "to be or so", "rejects": "questioning all", "first": "rejects"}])
    assert quality.shape(table).iloc[0].to_dict() == {"words": 2, "characters": -4, "more_words": 1, "more_characters": -1, "first": -1}


# ------------------------------------------------------------------------------------------------------------ blind readings
def told(*rows: tuple[str, str, str, str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of (label, shown_a, a, b, chief)."""
    labels = pd.DataFrame({"dimension": [r[0] for r in rows], "value": [VALUES_OF[r[0]][0] for r in rows]})
    return pd.DataFrame([r[1:] for r in rows], columns=["shown_a", "a", "b", "chief"]), labels


C, O, S = "conservation", "openness_to_change", "self_enhancement"


def test_agreement_on_five_readings_counted_by_hand() -> None:
    read, labels = told(
        (C, "expresses", C, O, "a"),  # as labelled in every respect
        (C, "rejects", O, C, "a"),  # the courses as labelled, the scene held to be about the other end
        (C, "expresses", O, C, "b"),  # the courses the wrong way round
        (C, "expresses", S, O, "b"),  # another axis
        (O, "rejects", C, O, "b"),
    )
    found = quality.agreement(read, labels)
    assert found.loc[C].to_dict() == {"n": 4, "dimension": 0.5, "course": pytest.approx(2 / 3), "axis": 0.75, "chief": 0.5}
    assert found.loc[O].to_dict() == {"n": 1, "dimension": 1, "course": 1, "axis": 1, "chief": 1}
    assert found.loc["all"].to_dict() == {"n": 5, "dimension": 0.6, "course": 0.75, "axis": 0.8, "chief": 0.6}


def test_one_dimension_for_both_courses_says_nothing_of_the_course() -> None:
    found = quality.agreement(*told((C, "expresses", C, C, "a"))).loc["all"]
    assert found["dimension"] == 1 and np.isnan(found["course"])


def test_served_follows_what_was_shown_as_a() -> None:
    read, _ = told((C, "expresses", C, O, "a"), (C, "rejects", C, O, "a"))
    assert quality.served(read).to_dict("list") == {"expresses": [C, O], "rejects": [O, C]}
    assert OPPOSITE[C] == O


def test_readings_are_those_of_the_questions_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "readings.csv"
    path.write_text(f"question_id,reader,shown_a,a,b,chief\nx,1,expresses,{C},{O},a\ny,1,rejects,{O},{C},b\n", encoding="utf-8")
    found = quality.readings(path, pd.DataFrame(index=["y", "z"]))
    assert found.drop(columns="reader").to_dict("index") == {"y": {"shown_a": "rejects", "a": O, "b": C, "chief": "b"}}


@pytest.mark.parametrize(("text", "line"), [
    (f"question_id,shown_a,a,b,chief\nx,left,{C},{O},a\n", "column 'shown_a' must hold expresses, rejects alone"),
    (f"question_id,shown_a,a,b,chief\nx,rejects,{C},power,a\n", "column 'b' must hold openness"),
    (f"question_id,shown_a,a,b\nx,rejects,{C},{O}\n", "column 'chief'"),
    ("name\nx\n", "cannot be read"),
    (None, "cannot be read"),
])  # fmt: skip
def test_a_damaged_file_of_readings_is_named(tmp_path: Path, text: str | None, line: str) -> None:
    if text:
        (tmp_path / "readings.csv").write_text(text, encoding="utf-8")
    with pytest.raises(valueinsight.DatasetError, match=f"^readings.csv.*{line}"):
        quality.readings(tmp_path / "readings.csv", pd.DataFrame(index=["x"]))
