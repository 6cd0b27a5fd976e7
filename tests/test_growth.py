"""Growing the dataset against a real server process: what is kept, what is dropped and why, and what a stop leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from valuelocate_utils import growth, quality, runs, valueinsight
from valuelocate_utils.growth import BATCH, Cell, GrowthError
from valuelocate_utils.schwartz import ASPECTS, DIMENSIONS, VALUES_OF

SHIPPED = runs.ROOT / "data" / "valueinsight"
SECRET = "sk-a-key-that-nobody-may-find"
WORK = Cell("tradition", "work")
VOCABULARY = sorted({w for text in valueinsight.load(SHIPPED).questions["question"][::40] for w in quality.words(text) if len(w) > 4 and not quality.VALUE_NAMES.search(w)})


def scene(seed: int, n: int = 45) -> str:
    """Words drawn at random: as unlike any other scene as texts can be."""
    return " ".join(random.Random(seed).sample(VOCABULARY, n)) + "?"


def item(seed: int, **fields: Any) -> dict[str, Any]:
    return {"question": scene(seed), "expresses": "keep the old bench", "rejects": "build a new bench", "first": ("expresses", "rejects")[seed % 2]} | fields


def answer(*items: Any, around: str = "{}") -> dict[str, str]:
    return {"content": around.replace("{}", json.dumps({"items": items}))}


def full(start: int, n: int = BATCH) -> dict[str, str]:
    return answer(*(item(seed) for seed in range(start, start + n)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one question and eight descriptions, quick to load and copy."""
    folder = tmp_path_factory.mktemp("small")
    one = {"id": "tradition.work.07", "dimension": "conservation", "value": "tradition", "split": "test", "topic": "work", "family": "tradition.work.07"}
    (folder / "questions.conservation.jsonl").write_text(json.dumps(one | item(1000)) + "\n", encoding="utf-8")
    people = [
        {"id": f"{VALUES_OF[d][0]}.{a}.01", "dimension": d, "aspect": a, "value": VALUES_OF[d][0], "split": "locate", "text": scene(2000 + k)}
        for k, (d, a) in enumerate(itertools.product(DIMENSIONS, ASPECTS))
    ]
    (folder / "descriptions.all.jsonl").write_text("".join(json.dumps(p) + "\n" for p in people), encoding="utf-8")
    return folder


class Endpoint:
    """The scripted server and what it was asked."""

    def __init__(self, folder: Path, script: list[dict[str, Any]]) -> None:
        self._log = folder / "requests.jsonl"
        (folder / "script.json").write_text(json.dumps(script), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).with_name("endpoint.py")), str(folder / "script.json"), str(self._log)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}/v1"

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()] if self._log.exists() else []


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Endpoint]]:
    started = []

    def start(*script: dict[str, Any]) -> Endpoint:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        started.append(Endpoint(folder, list(script)))
        monkeypatch.setenv("OPENAI_BASE_URL", started[-1].url)
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.process.kill()
        endpoint.process.wait()


def ask(small: Path, into: Path, n: int = BATCH, cell: Cell = WORK, requests: int = 0, timeout: float = 10.0, retries: int = 1):
    return growth.grow(cell, n, into, "scripted", growth.client(timeout, retries), small, requests)


def grown(into: Path) -> list[dict[str, Any]]:
    path = into / "questions.conservation.grown.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# ----------------------------------------------------------------------------------------------------------- a good endpoint
def test_new_questions_join_the_dataset(serve, small: Path, tmp_path: Path) -> None:
    endpoint, into = serve(full(0), full(5)), tmp_path / "grown"
    counts = ask(small, into, n=8)
    assert counts == {"accepted": 8, "requests": 2}
    table = valueinsight.load(into).questions.sort_index()
    assert list(table.index) == [f"tradition.work.{n:02d}" for n in range(7, 16)]  # it counts on from the shipped 07
    assert table["question"].tolist() == [scene(1000), *(scene(k) for k in range(8))]
    assert set(table["split"]) == set(valueinsight.SPLITS) and (table["family"] == table.index).all()
    for request in endpoint.asked():
        brief = request["asked"]["messages"][0]["content"]
        assert request["path"] == "/v1/chat/completions" and request["asked"]["model"] == "scripted"
        assert "Tradition" in brief and "Openness to Change" in brief and "Where the scene plays: work" in brief
    first, second = (request["asked"]["messages"][0]["content"] for request in endpoint.asked())
    assert scene(1000) in first and "Write 5 " in first
    assert scene(4) in second and "Write 3 " in second  # the latest of the cell are told, and only what lacks is asked for


def test_the_published_dataset_stays_as_it_is(serve, small: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    serve(full(0))
    ask(small, tmp_path / "grown")
    assert {path.name: path.read_bytes() for path in small.iterdir()} == before


def test_descriptions_grow_too(serve, small: Path, tmp_path: Path) -> None:
    endpoint = serve(answer({"text": scene(1)}, {"text": scene(2)}))
    counts = ask(small, tmp_path / "grown", n=2, cell=Cell("hedonism", "negative"))
    assert counts["accepted"] == 2
    table = valueinsight.load(tmp_path / "grown").personas("openness_to_change", "negative", "test")
    assert "hedonism.negative.01" in table.index
    brief = endpoint.asked()[0]["asked"]["messages"][0]["content"]
    assert "lives well without this value" in brief and "Conservation cares" in brief


@pytest.mark.parametrize("around", ["```json\n{}\n```", "Gladly! {}", '{"note": 1} {}', "Of {course}: {}"[:11] + " {}"])
def test_an_answer_may_be_fenced_or_talked_around(serve, small: Path, tmp_path: Path, around: str) -> None:
    serve(answer(item(1), around=around))
    assert ask(small, tmp_path / "grown", n=1)["accepted"] == 1


def test_nothing_is_asked_for_when_the_cell_is_full(serve, small: Path, tmp_path: Path) -> None:
    endpoint = serve(full(0))
    ask(small, tmp_path / "grown")
    assert ask(small, tmp_path / "grown") == {"accepted": 0, "requests": 0}
    assert len(endpoint.asked()) == 1


def test_cells_share_a_file_and_are_counted_apart(serve, small: Path, tmp_path: Path) -> None:
    serve(full(0), full(20))
    ask(small, tmp_path / "grown")
    ask(small, tmp_path / "grown", cell=Cell("tradition", "food"))
    assert [r["topic"] for r in grown(tmp_path / "grown")] == ["work"] * 5 + ["food"] * 5
    assert grown(tmp_path / "grown")[5]["id"] == "tradition.food.01"


def test_key_and_address_are_stored_nowhere(serve, small: Path, tmp_path: Path) -> None:
    endpoint, into = serve({"status": 401, "body": json.dumps({"error": {"message": f"wrong key {SECRET}"}})}, full(0)), tmp_path / "grown"
    with pytest.raises(GrowthError) as caught:
        ask(small, into)
    ask(small, into)
    assert endpoint.asked()[0]["key"] == f"Bearer {SECRET}"  # it was used
    for text in (str(caught.value), *(path.read_text(encoding="utf-8") for path in into.iterdir())):
        assert SECRET not in text and endpoint.url not in text and "127.0.0.1" not in text


def test_every_call_leaves_a_line_of_provenance(serve, small: Path, tmp_path: Path) -> None:
    serve({"content": "no"}, full(0), {"status": 404, "body": "{}"})
    ask(small, tmp_path / "grown")
    with pytest.raises(GrowthError):
        ask(small, tmp_path / "grown", n=9)
    log = pd.read_csv(tmp_path / "grown" / growth.LOG)
    assert log[["model", "value", "cell"]].drop_duplicates().values.tolist() == [["scripted", "tradition", "work"]]
    assert log["accepted"].tolist() == [5, 0] and log["requests"].tolist() == [2, 1] and log["lost"].tolist() == ["1 not JSON", "none"]


# ------------------------------------------------------------------------------------------------------------ what is dropped
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"content": None, "finish": "content_filter"}, "refused"),
        ({"content": None, "refusal": "I would rather not."}, "refused"),
        ({"content": ""}, "refused"),
        ({"body": json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []})}, "refused"),
        ({"content": "I am sorry, but no."}, "not JSON"),
        ({"content": '{"questions": []}'}, "not JSON"),
        ({"content": '{"items": [{"question": "Half a', "finish": "length"}, "cut off"),
        (answer("a text"), "other fields than asked for"),
        (answer({"text": scene(3)}), "other fields than asked for"),
        (answer(item(3, id="mine")), "other fields than asked for"),
        (answer(item(3, question=7)), "schema: question"),
        (answer(item(3, question=scene(3, 20))), "schema: length"),
        (answer(item(3, question=scene(3).replace("?", "."))), "schema: length"),
        (answer(item(3, first="both")), "schema: first"),
        (answer(item(3, expresses="Keep the old bench")), "a course begins with a capital or ends with a full stop"),
        (answer(item(3, rejects="build the bench yourself")), "a course says you or I"),
        (answer(item(3, rejects="never build a bench")), "a course is a negation"),
        (answer(item(3, rejects="build a new bench from the planks of the barn")), "the courses differ in length"),
        (answer(item(3, expresses="keep to the tradition")), "names a value (tradition)"),
        (answer(item(1000)), "near-duplicate"),
        (answer(item(1000, question=" ".join(scene(1000).split()[::-1]).replace("?", "") + "?")), "near-duplicate"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_counted_by_reason(serve, small: Path, tmp_path: Path, bad: dict, reason: str) -> None:
    serve(bad, full(0))
    assert ask(small, tmp_path / "grown") == {"accepted": 5, "requests": 2, reason: 1}
    assert [r["question"] for r in grown(tmp_path / "grown")] == [scene(k) for k in range(5)]


def test_one_bad_item_does_not_cost_the_others(serve, small: Path, tmp_path: Path) -> None:
    serve(answer(item(1), item(2, first="both"), item(3)), full(10))
    counts = ask(small, tmp_path / "grown", n=3)
    assert counts == {"accepted": 3, "requests": 2, "schema: first": 1}
    assert [r["id"][-2:] for r in grown(tmp_path / "grown")] == ["08", "09", "10"]  # a lost item leaves no gap


def test_new_items_may_not_resemble_each_other(serve, small: Path, tmp_path: Path) -> None:
    serve(answer(item(1), item(1)), full(10))
    assert ask(small, tmp_path / "grown", n=2)["near-duplicate"] == 1


def test_asking_ends_after_thrice_the_least_number_of_requests(serve, small: Path, tmp_path: Path) -> None:
    endpoint = serve({"content": "no"})
    assert ask(small, tmp_path / "grown", n=6) == {"accepted": 0, "requests": 6, "not JSON": 6}
    assert len(endpoint.asked()) == 6 and not grown(tmp_path / "grown")


# --------------------------------------------------------------------------------------------------------- a failing endpoint
@pytest.mark.parametrize("trouble", [{"status": 429, "headers": {"Retry-After": "0"}, "body": "{}"}, {"status": 500, "body": "{}"}, {"sleep": 3, "content": "late"}])
def test_passing_trouble_is_waited_out(serve, small: Path, tmp_path: Path, trouble: dict) -> None:
    endpoint = serve(trouble, full(0))
    assert ask(small, tmp_path / "grown", timeout=1.0) == {"accepted": 5, "requests": 1}
    assert len(endpoint.asked()) == 2


def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks(serve, small: Path, tmp_path: Path) -> None:
    serve({"status": 429, "headers": {"Retry-After": "2"}, "body": "{}"}, full(0))
    start = time.monotonic()
    ask(small, tmp_path / "grown")
    assert time.monotonic() - start >= 2


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ({"status": 429, "body": "{}"}, "429 (too many requests, or no credit) after every wait; what was accepted is kept"),
        ({"status": 401, "body": "{}"}, "refused the key in OPENAI_API_KEY"),
        ({"status": 403, "body": "{}"}, "refused the key in OPENAI_API_KEY"),
        ({"status": 404, "body": "{}"}, "has no model 'scripted'"),
        ({"status": 400, "body": "{}"}, "failed with status 400"),
        ({"status": 503, "body": "busy"}, "failed with status 503"),
        ({"sleep": 3, "content": "late"}, "did not answer in time, after every retry"),
        ({"body": "<html>welcome</html>", "headers": {"Content-Type": "text/html"}}, "cannot be read: check that OPENAI_BASE_URL speaks"),
        ({"body": '{"ok": true}'}, "cannot be read"),
        ({"body": "{half"}, "OPENAI_BASE_URL"),
    ],
)
def test_lasting_trouble_is_one_line_and_keeps_what_was_accepted(serve, small: Path, tmp_path: Path, trouble: dict, line: str) -> None:
    serve(full(0), trouble)
    with pytest.raises(GrowthError) as caught:
        ask(small, tmp_path / "grown", n=10, timeout=1.0)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert len(grown(tmp_path / "grown")) == 5 and len(valueinsight.load(tmp_path / "grown").questions) == 6


def test_an_endpoint_that_is_not_there(serve, small: Path, tmp_path: Path) -> None:
    endpoint = serve(full(0))
    endpoint.process.kill()
    endpoint.process.wait()
    with pytest.raises(GrowthError, match="cannot be reached: check OPENAI_BASE_URL"):
        ask(small, tmp_path / "grown")


def test_no_key_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(GrowthError, match="OPENAI_API_KEY is not set: export it"):
        growth.client()


@pytest.mark.parametrize(("value", "place", "line"), [("face", "work", "unknown value 'face': choose VALUE= from self_direction_thought, "), ("tradition", "moon", "unknown cell 'moon': choose CELL= from the aspects positive")])
def test_an_unknown_cell_is_refused(value: str, place: str, line: str) -> None:
    with pytest.raises(GrowthError, match=line):
        Cell(value, place)


# ------------------------------------------------------------------------------------------------------------------- a stop
def command(into: Path, n: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "valuelocate_utils", "grow", "--value", "tradition", "--cell", "work", "--n", str(n), "--into", str(into), "--llm", "scripted", *more]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_stop_loses_nothing_and_the_same_command_goes_on(serve, small: Path, tmp_path: Path, sign: signal.Signals) -> None:
    endpoint, into = serve(full(0), {"sleep": 600, "content": "never"}), tmp_path / "grown"
    growth._copy(small, into)
    process = subprocess.Popen(command(into, 10), cwd=runs.ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if len(endpoint.asked()) == 2:
            break
        time.sleep(0.1)
    process.send_signal(sign)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and (sign == signal.SIGKILL or "stopped: what was finished is kept" in said)
    before = grown(into)
    assert [r["question"] for r in before] == [scene(k) for k in range(5)] and valueinsight.load(into)
    serve(full(5))
    done = subprocess.run(command(into, 10), cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 questions in questions.conservation.grown.jsonl: 5 new from 1 requests, lost: none" in done.stdout
    assert grown(into)[:5] == before and len(grown(into)) == 10


def test_too_few_is_an_error_that_counts(serve, tmp_path: Path) -> None:
    into = tmp_path / "grown"
    serve(answer(item(1), item(2, first="both")), {"content": "no"})
    done = subprocess.run(command(into, 3), cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "1 of 3 questions" in done.stderr and "1 new from 3 requests, lost: 2 not JSON, 1 schema: first" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(valueinsight.load(into).questions) == len(valueinsight.load(SHIPPED).questions) + 1


def test_a_model_has_to_be_named(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, 1, "--llm", ""), cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "error: no model named: say which one the endpoint should use with LLM="
