"""What an edit does: forced choice, generated answers, fluency, leakage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .activations import Answer, degenerate, stated_course
from .interventions import EditPlan, apply
from .models import Model, Padded, encode, encode_answer, length_batches, pad
from .schwartz import ASPECTS, DIMENSIONS, cosine_matrix
from .valueinsight import SIDES, Rendering, render

DEFAULT_FORMS = {side: ["I would {course}."] for side in SIDES}


def forms_of(model: Model, dimension: str) -> dict[str, list[str]]:
    """Side -> sentences that take a course: those a model folder ships (answer_forms.json), else "I would {course}."."""
    return model.forms[dimension] if model.forms else DEFAULT_FORMS


def drawn_forms(forms: dict[str, list[str]], limit: int | None, key: str) -> dict[str, list[str]]:
    """At most `limit` forms a side, drawn by `key` and the same on every call; the sides keep matching numbers.

    Raises:
        ValueError: the sides have different numbers of forms.
    """
    counts = {len(forms[side]) for side in SIDES}
    if len(counts) != 1:
        raise ValueError("answer forms: both sides need the same number of forms")
    order = np.random.default_rng(list(key.encode())).permutation(counts.pop())[:limit]
    return {side: [forms[side][i] for i in sorted(order)] for side in SIDES}


@dataclass
class _Batch:
    """Prompts of one batch with their continuations [prompt, side * form], and the prompts' state once computed."""

    prompts: list[list[int]]
    continuations: list[list[list[int]]]
    padded: Padded | None = None
    cache: object | None = None
    last: torch.Tensor | None = None


class ForcedChoice:
    """The preference for the expressing course, from log-probabilities alone.

    For each question and each order of presentation, the probability of an answer that takes the `expresses` course against one
    that takes the `rejects` course, each summed over the answer forms of its side; the two orders are averaged. Where a model
    has more than `forms` forms a side, each question gets that many, drawn by its id, the same numbers on both sides.

    `normalisation="sum"` compares whole answers, that is, it is the probability of taking the course among the two.
    "mean" divides each log-probability by its number of tokens first, which removes the advantage of a short course and
    compresses the scale: one deciding token among twenty counts a twentieth.

    The prompts are read once and their key-value cache is kept, for edits act on answer tokens only.
    """

    def __init__(
        self, model: Model, questions: pd.DataFrame, rendering: Rendering = "choice", descriptions: pd.Series | None = None,
        normalisation: str = "sum", forms: int | None = None, batch_size: int = 32,
    ) -> None:  # fmt: skip
        """
        Args:
            questions: rows of `ValueInsight.questions`.
            descriptions: a description's text for each question id, or None.
        """
        self._model, self._normalisation = model, normalisation
        self._owners: list[str] = []
        rows = []
        for question_id, q in questions.iterrows():
            taking = drawn_forms(forms_of(model, q["dimension"]), forms, str(question_id))
            answers = [encode_answer(model, form.format(course=q[side])) for side in SIDES for form in taking[side]]
            text = None if descriptions is None else descriptions[question_id]
            for first in SIDES if rendering == "choice" else SIDES[:1]:
                rows.append((encode(model, render(q, text, rendering, first)), answers))
                self._owners.append(question_id)
        self._index = []
        for per in sorted({len(answers) for _, answers in rows}):  # dimensions may differ in their number of forms
            group = [i for i, (_, answers) in enumerate(rows) if len(answers) == per]
            self._index += [[group[i] for i in at] for at in length_batches([len(rows[i][0]) for i in group], max(1, 4 * batch_size // per))]
        self._batches = [_Batch([rows[i][0] for i in at], [rows[i][1] for i in at]) for at in self._index]

    def preference(self, plan: EditPlan | None = None) -> pd.Series:
        """Preference in [0, 1] by question id; above 0.5 the expressing course is preferred."""
        scores = np.zeros(len(self._owners))
        for at, batch in zip(self._index, self._batches):
            scores[at] = self._batch_preference(batch, plan)
        return pd.Series(scores).groupby(pd.Series(self._owners), sort=False).mean().rename("preference")

    @torch.inference_mode()
    def _read_prompts(self, batch: _Batch) -> None:
        model = self._model
        batch.padded = pad(batch.prompts, model.tokenizer.pad_token_id, model.hf.device)
        out = model.hf.base_model(**batch.padded.inputs(), use_cache=True)
        batch.cache, batch.last = out.past_key_values, out.last_hidden_state[:, -1]

    def _batch_preference(self, batch: _Batch, plan: EditPlan | None) -> np.ndarray:
        if batch.cache is None:
            self._read_prompts(batch)
        model, per = self._model, len(batch.continuations[0])
        rows = [c for prompt in batch.continuations for c in prompt]
        fed = pad([c[:-1] or c for c in rows], model.tokenizer.pad_token_id, model.hf.device, side="right")
        target = pad(rows, 0, model.hf.device, side="right")
        with torch.inference_mode():
            cache = copy.deepcopy(batch.cache)
            cache.batch_repeat_interleave(per)
            before = batch.padded.mask.repeat_interleave(per, 0)
            inputs = {
                "input_ids": fed.ids, "attention_mask": torch.cat([before, fed.mask], 1),
                "position_ids": before.sum(1, keepdim=True) + fed.positions, "past_key_values": cache,
            }  # fmt: skip
            if plan is None:
                hidden = model.hf.base_model(**inputs).last_hidden_state
            else:
                with model.body.trace(**inputs):
                    apply(model, plan)
                    hidden = model.body.output.last_hidden_state.save()
            states = torch.cat([batch.last.repeat_interleave(per, 0)[:, None], hidden], 1)[:, : target.ids.shape[1]]
            wanted = target.mask.bool()  # logits only where there is a token: they are half of the cost
            log_p = torch.zeros(wanted.shape, device=states.device)
            log_p[wanted] = token_log_probs(model, states[wanted], target.ids[wanted])
            total = log_p.sum(1)
            if self._normalisation == "mean":
                total = total / target.mask.sum(1)
            by_side = total.view(-1, len(SIDES), per // len(SIDES)).logsumexp(-1)
            return torch.sigmoid(by_side[:, 0] - by_side[:, 1]).double().cpu().numpy()


def token_log_probs(model: Model, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of each target token, [...], from last hidden states [..., hidden]."""
    logits = model.hf.get_output_embeddings()(states).float()
    scale = getattr(model.hf.config, "logit_scale", None) or 1 / getattr(model.hf.config, "logits_scaling", 1)  # Cohere, Granite
    if scale != 1:
        logits = logits * scale
    if cap := getattr(model.hf.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return -torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


@torch.inference_mode()
def answer_nll(model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], batch_size: int) -> np.ndarray:
    """Mean negative log-likelihood a token (nats) of each answer under the unedited model, NaN for an empty answer."""
    out = np.full(len(answers), np.nan)
    rows = [list(p) + list(a.ids) for p, a in zip(prompts, answers)]
    for at in length_batches([len(r) for r in rows], batch_size):
        padded = pad([rows[i] for i in at], model.tokenizer.pad_token_id, model.hf.device)
        width = max(len(answers[i].ids) for i in at)
        if width == 0:
            continue
        states = model.hf.base_model(**padded.inputs(), use_cache=False).last_hidden_state[:, -width - 1 : -1]
        log_p = token_log_probs(model, states, padded.ids[:, -width:])
        for n, i in enumerate(at):
            if answers[i].ids:
                out[i] = -log_p[n, width - len(answers[i].ids) :].double().mean().item()
    return out


def perplexity(nll: pd.Series, n_tokens: pd.Series) -> float:
    """Perplexity over all tokens of some answers, from their mean NLL and lengths; NaN answers carry no token."""
    known = nll.notna()
    return float(np.exp((nll[known] * n_tokens[known]).sum() / n_tokens[known].sum())) if known.any() else float("inf")


def judge_answers(model: Model, questions: pd.DataFrame, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], rendering: Rendering, batch_size: int) -> pd.DataFrame:
    """One row an answer: question_id, answer, course, degenerate, nll, n_tokens."""
    rows = [
        {"question_id": qid, "answer": a.text, "course": stated_course(a.text, q), "degenerate": degenerate(a.text, q, rendering), "n_tokens": len(a.ids)}
        for (qid, q), a in zip(questions.iterrows(), answers)
    ]
    return pd.DataFrame(rows).assign(nll=answer_nll(model, prompts, answers, batch_size))


def taken(course: pd.Series) -> pd.Series:
    """1 where an answer takes the expressing course, 0 the rejecting, 0.5 where it states both or neither."""
    return course.map({"expresses": 1.0, "rejects": 0.0, "both": 0.5, "neither": 0.5})


def effect_matrix(effects: pd.DataFrame) -> pd.DataFrame:
    """The 4 x 4 matrix of located amplification, [edited dimension, measured dimension].

    A cell is the mean over the two directions of the change of forced-choice preference, signed so that raising the edited
    dimension's own preference is positive: (change under positive - change under negative) / 2.
    """
    rows = effects.query("intervention == 'amplify' and control == 'none' and outcome == 'forced_choice'")
    sign = rows["aspect"].map(dict(zip(ASPECTS, (1.0, -1.0))))
    table = rows.assign(signed=rows["mean"] * sign).pivot_table(index="edited_dimension", columns="measured_dimension", values="signed", aggfunc="mean")
    return table.reindex(index=DIMENSIONS, columns=DIMENSIONS)


def leakage(matrix: pd.DataFrame) -> pd.Series:
    """leakage_i = mean over j != i of max(0, effect_ij) / effect_ii; NaN where the own effect is not above zero."""
    values = matrix.to_numpy(float)
    own = np.diag(values)
    others = np.clip(values, 0, None)
    np.fill_diagonal(others, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(own > 0, others.sum(1) / (len(values) - 1) / own, np.nan)
    return pd.Series(found, index=matrix.index, name="leakage")


def circle_fit(matrix: pd.DataFrame, centred: bool = False) -> float:
    """Pearson correlation of the 16 cells with the cosine matrix of the Schwartz circle; `centred` subtracts each row's mean
    first, as portrait scores are centred."""
    values = matrix.to_numpy(float)
    if centred:
        values = values - values.mean(1, keepdims=True)
    if np.ptp(values) == 0:
        return float("nan")
    return float(np.corrcoef(values.ravel(), cosine_matrix().to_numpy().ravel())[0, 1])
