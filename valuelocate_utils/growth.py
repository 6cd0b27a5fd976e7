"""Growing ValueInsight: more questions or descriptions of a cell from any OpenAI-compatible endpoint.

The endpoint and its key come from the environment (OPENAI_BASE_URL, OPENAI_API_KEY); they are used for the calls and written
nowhere. What comes back passes the checks that the shipped texts passed (the schema, `quality.fault`, no near-duplicate); what
does not is counted by reason and dropped. The dataset grows in a copy, so that the published one stays what it is.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pandas as pd
from openai.types.chat import ChatCompletion
from pydantic import ValidationError
from tqdm.auto import tqdm

from . import quality, runs, valueinsight
from .schwartz import ASPECTS, DIMENSION_LABELS, OPPOSITE, REFINED_VALUES
from .valueinsight import TOPICS, Description, Question

BATCH = 5  # items a request: few enough that one bad answer loses little
# The splits of a cell's new items, by number: as large shares as the shipped ones have.
PATTERN = ("locate", "test", "locate", "tune", "locate")
LOG = "grown.csv"
AGAIN = "what was accepted is kept, so run the same command again"

QUESTIONS = """\
Write {n} situational questions for a research dataset on human values.

Value: {value}, that is {goal} (part of {dimension}). Where the scene plays: {place}.
A question is a scene of 40 to 70 words that happens to "you": who, where, what has just happened, what is at stake. It names two
courses of action with equal warmth, then asks what you think and what you would do, and ends with a question mark.
"expresses" is the course that lives the value. "rejects" is a course that a decent, sensible person could take instead, out of what
{opposite} cares for. Each has 4 to 9 words, begins with a verb in lower case, has no full stop, no you, your, I or my and no negation,
and reads well in "Would you X or Y?". Both have the same number of words. Neither is illegal or cruel, and neither is praised.
"first" says which of the two the scene mentions first, "expresses" or "rejects"; take turns.
Never name the value, its dimension or any other value. Every question is another place, person, age and scale.
{unlike}
Answer with JSON alone: {{"items": [{{"question": "...", "expresses": "...", "rejects": "...", "first": "expresses"}}, ...]}}"""

DESCRIPTIONS = """\
Write {n} descriptions of people for a research dataset on human values.

Value: {value}, that is {goal} (part of {dimension}). {stance}
A description speaks to the reader as "you", in the present tense, in 35 to 75 words, and makes it one particular person: habits,
choices, a thing kept or given away, what it is proud of or uneasy about. It is concrete, and it would sway how this person decides in
any scene. No more than one negation. Never name the value, its dimension or any other value.
Every description is another person, another voice and another opening.
{unlike}
Answer with JSON alone: {{"items": [{{"text": "..."}}, ...]}}"""

STANCES = {
    "positive": "The person lives this value.",
    "negative": "The person is whole and likeable and lives well without this value, moved by what {opposite} cares for; no villain, and not the value with a not before it.",
}


class GrowthError(RuntimeError):
    """Growing cannot start or go on; the message names the reason and the way out. What was accepted is kept."""


@dataclass(frozen=True)
class Cell:
    """What to write more of: a refined value, with a topic (questions) or an aspect (descriptions).

    Raises:
        GrowthError: no value that the dataset uses, or neither a topic nor an aspect.
    """

    value: str
    place: str

    def __post_init__(self) -> None:
        used = [v.key for v in REFINED_VALUES if v.dimension]
        if self.value not in used:
            raise GrowthError(f"unknown value {self.value!r}: choose VALUE= from {', '.join(used)}")
        if self.place not in TOPICS + ASPECTS:
            raise GrowthError(f"unknown cell {self.place!r}: choose CELL= from the aspects {', '.join(ASPECTS)} (descriptions) or the topics {', '.join(TOPICS)} (questions)")

    @property
    def kind(self) -> str:
        return "questions" if self.place in TOPICS else "descriptions"

    @property
    def dimension(self) -> str:
        return next(v.dimension for v in REFINED_VALUES if v.key == self.value)

    @property
    def prefix(self) -> str:
        """What the ids of the cell's items begin with; a number follows."""
        return f"{self.value}.{self.place}."

    def brief(self, n: int, unlike: list[str]) -> str:
        """The request for `n` items, other than the texts in `unlike`."""
        value = next(v for v in REFINED_VALUES if v.key == self.value)
        opposite = DIMENSION_LABELS[OPPOSITE[self.dimension]]
        told = {"n": n, "value": value.label, "goal": value.goal, "dimension": DIMENSION_LABELS[self.dimension], "opposite": opposite}
        told["unlike"] = "These exist already: " + " / ".join(unlike) if unlike else ""
        if self.kind == "questions":
            return QUESTIONS.format(place=self.place.replace("_", " "), **told)
        return DESCRIPTIONS.format(stance=STANCES[self.place].format(opposite=opposite), **told)

    def record(self, item: dict[str, Any], number: int) -> Question | Description:
        """The item as a record of the dataset.

        Raises:
            ValidationError: it breaks the schema.
        """
        name = f"{self.prefix}{number:02d}"
        common = {"id": name, "dimension": self.dimension, "value": self.value, "split": PATTERN[number % len(PATTERN)]}
        if self.kind == "questions":
            return Question(topic=self.place, family=name, **common, **item)
        return Description(aspect=self.place, **common, **item)


def client(timeout: float = 60.0, retries: int = 5) -> openai.OpenAI:
    """A client for the endpoint that the environment names. Rate limits (429), time-outs and server errors are tried again
    `retries` times, after as long as the server asks for or else with exponential backoff.

    Args:
        timeout: seconds to wait for an answer.

    Raises:
        GrowthError: no key in the environment.
    """
    if not os.environ.get("OPENAI_API_KEY"):
        raise GrowthError("OPENAI_API_KEY is not set: export it (any text for a local server), and OPENAI_BASE_URL for an endpoint that is not OpenAI's own")
    return openai.OpenAI(timeout=timeout, max_retries=retries)


class Grown:
    """A folder with a copy of the dataset and the file that one cell's new items go to.

    Attributes:
        mine: how many items of the cell the file holds.
    """

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.cell, self.path = cell, folder / f"{cell.kind}.{cell.dimension}.grown.jsonl"
        table = getattr(valueinsight.load(folder), cell.kind)
        self._text = "question" if cell.kind == "questions" else "text"
        self._lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self._embedded = quality.embed(table[self._text])
        self._texts = table.loc[table.index.str.startswith(cell.prefix), self._text].tolist()
        self._number = max((int(i.removeprefix(cell.prefix)) for i in table.index if i.startswith(cell.prefix)), default=0)
        self.mine = sum(json.loads(line)["id"].startswith(cell.prefix) for line in self._lines)

    def latest(self) -> list[str]:
        """The last texts of the cell, for an endpoint to write something else."""
        return self._texts[-3:]

    def add(self, item: Any) -> str | None:
        """Keep an item, or return the reason why it cannot be kept."""
        fields = {"question", "expresses", "rejects", "first"} if self.cell.kind == "questions" else {"text"}
        if not isinstance(item, dict) or set(item) != fields:
            return "other fields than asked for"
        try:
            record = self.cell.record(item, self._number + 1)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            return f"schema: {'.'.join(map(str, first['loc'])) or 'length'}"
        if reason := quality.fault(record):
            return reason
        text = getattr(record, self._text)
        embedded = quality.embed([text])
        if quality.nearest(embedded, self._embedded)[0][0] >= quality.NEAR:
            return "near-duplicate"
        self._embedded = np.concatenate([self._embedded, embedded])
        self._texts.append(text)
        self._lines.append(record.model_dump_json())
        self._number, self.mine = self._number + 1, self.mine + 1
        return None

    def save(self) -> None:
        """Write the file in one step, so that a stop at any moment leaves the old or the new one."""
        if self._lines:
            with runs.atomic(self.path) as temporary:
                temporary.write_text("\n".join(self._lines) + "\n", encoding="utf-8")


def grow(cell: Cell, n: int, folder: Path, model: str, api: openai.OpenAI, shipped: Path, requests: int = 0) -> Counter[str]:
    """Ask for items of a cell until its file of grown items in `folder` holds `n`.

    The file is written after every request. Whatever stops a call, the same call made again goes on from what was accepted;
    made after it is done, it asks for nothing.

    Args:
        cell: what to write more of.
        folder: where the dataset grows; if it does not exist, it begins as a copy of `shipped`. The loader takes it as it is.
        model: a model that the endpoint serves.
        shipped: the dataset to start from.
        requests: at most so many requests; 0 for three times what a faultless endpoint would need.

    Returns:
        Counts: `accepted`, `requests`, and one for each reason of a loss (`refused`, `not JSON`, `cut off`, or a check's).

    Raises:
        GrowthError: the endpoint cannot be used; the line says why. DatasetError: the folder's files are damaged.
    """
    _copy(shipped, folder)
    grown, counts = Grown(folder, cell), Counter(accepted=0, requests=0)
    try:
        with tqdm(total=n, initial=min(n, grown.mine), desc=cell.prefix.rstrip("."), unit="item", disable=None) as bar:
            while grown.mine < n and counts["requests"] < (requests or 3 * -(-n // BATCH)):
                counts["requests"] += 1
                for item in _ask(api, model, cell.brief(min(BATCH, n - grown.mine), grown.latest()), counts):
                    if grown.mine < n:
                        reason = grown.add(item)
                        counts[reason or "accepted"] += 1
                        bar.update(reason is None)
                grown.save()
    finally:
        if counts["requests"]:
            _note(folder / LOG, cell, model, counts)
    return counts


def _copy(shipped: Path, folder: Path) -> None:
    """A copy of the shipped files at `folder`, whole or not at all; a folder that is there is taken as it is."""
    if folder.exists():
        return
    half = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(shipped, half)
        half.rename(folder)
    except OSError as error:
        shutil.rmtree(half, ignore_errors=True)
        raise GrowthError(f"cannot copy the dataset to {folder.name}: {error.strerror or error}; mend that, or name another folder with INTO=") from None


def _note(path: Path, cell: Cell, model: str, counts: Counter[str]) -> None:
    """One line of provenance: when, which model, what came of it. The address is not among it."""
    row = {"date": datetime.date.today().isoformat(), "model": model, "value": cell.value, "cell": cell.place}
    row |= {"accepted": counts["accepted"], "requests": counts["requests"], "lost": lost(counts)}
    table = pd.concat([pd.read_csv(path), pd.DataFrame([row])]) if path.exists() else pd.DataFrame([row])
    with runs.atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def _ask(api: openai.OpenAI, model: str, brief: str, counts: Counter[str]) -> Iterator[Any]:
    """The items of one answer as they came; none, and a count of the reason, where there are none."""
    try:
        reply = api.chat.completions.create(model=model, messages=[{"role": "user", "content": brief}])
    except (openai.OpenAIError, ValueError) as error:  # a ValueError is a body that is no JSON
        raise GrowthError(_line(error, model)) from None
    if not isinstance(reply, ChatCompletion) or not isinstance(reply.choices, list):
        raise GrowthError(f"the endpoint's answer cannot be read: check that OPENAI_BASE_URL speaks the chat completions protocol (it mostly ends in /v1); {AGAIN}")
    choice = reply.choices[0] if reply.choices else None
    if choice is None or choice.finish_reason == "content_filter" or choice.message.refusal or not choice.message.content:
        counts["refused"] += 1
        return
    items = _items(choice.message.content)
    if items is None:
        counts["cut off" if choice.finish_reason == "length" else "not JSON"] += 1
        return
    yield from items


def _line(error: Exception, model: str) -> str:
    """What the user can do about a failed call. A server's own words are not passed on: they may hold a part of the key."""
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return "the endpoint refused the key in OPENAI_API_KEY: check it, and OPENAI_BASE_URL"
    if isinstance(error, openai.NotFoundError):
        return f"the endpoint has no model {model!r}, or is none: name one that it serves with LLM=, and check OPENAI_BASE_URL (it mostly ends in /v1)"
    if isinstance(error, openai.RateLimitError):
        return f"the endpoint still answers 429 (too many requests, or no credit) after every wait; {AGAIN} later"
    if isinstance(error, openai.APITimeoutError):
        return f"the endpoint did not answer in time, after every retry; {AGAIN}, with TIMEOUT= for more seconds"
    if isinstance(error, openai.APIConnectionError):
        return f"the endpoint cannot be reached: check OPENAI_BASE_URL and the network; {AGAIN}"
    if isinstance(error, openai.APIStatusError):
        return f"the endpoint failed with status {error.status_code}; {AGAIN} later, or name another model with LLM="
    return f"the call failed ({type(error).__name__}): check OPENAI_BASE_URL; {AGAIN}"


def _items(text: str) -> list[Any] | None:
    """The list under `items` of the first JSON object in a text, which may be fenced or talked around."""
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text[start:])
        except json.JSONDecodeError:
            start = text.find("{", start + 1)
            continue
        if isinstance(found, dict) and isinstance(found.get("items"), list):
            return found["items"]
        start = text.find("{", start + 1)
    return None


def lost(counts: Counter[str]) -> str:
    """The losses of a call as one phrase."""
    found = [f"{k} {reason}" for reason, k in counts.most_common() if reason not in ("accepted", "requests")]
    return ", ".join(found) or "none"
