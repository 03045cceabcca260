"""What a split language model is asked: a letter, the likelihood of choices, or the next tokens of text.

A task turns samples into token ids for the front half, and reads the answer off the back half. The
feature is the hidden state of every token, (1, 1, tokens, width).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from dtufc.errors import UserError
from dtufc.machines.machine import Sample, Score, Split
from dtufc.machines.sources.source import Question, Questions, Texts
from dtufc.machines.sources.text import SPLITS, digest_texts, splits_before

LETTERS = "ABCDE"
ASKED = 4  # choices that the published prompt lists
KEPT_BYTES = 2 << 30
"""Memory for the uncut model's distributions, so that several folders of features need them once."""
PLACES = 16
"""Of a window that are judged at a time: their distributions stay in the cache."""


class Model(Protocol):
    """What a task needs of the machine."""

    tokenizer: Any

    def uncut(self, sample: Sample) -> Tensor:
        """Logits (T, vocabulary) of the model that is not cut."""


class Task(ABC):
    """What is asked of the model."""

    places = 0
    """Last places of a sequence whose logits are asked for; 0: all."""
    judged = slice(None)
    """Places among those whose distributions decide the score."""

    @abstractmethod
    def samples(self, split: Split) -> list[Sample]: ...

    def origin(self) -> dict[str, Any]:
        """What of the task decides features, beyond what every machine tells; nothing as published."""
        return {}

    @abstractmethod
    def sequences(self, sample: Sample) -> list[list[int]]:
        """Token ids of what the model reads. Several sequences begin with the same ``shared`` tokens."""

    def shared(self, sample: Sample) -> int:
        """Tokens that all sequences begin with; their states are sent once."""
        return 0

    @abstractmethod
    def predict(self, sample: Sample, logits: list[Tensor]) -> Any:
        """Logits of each sequence, (T, vocabulary) -> the prediction."""

    @abstractmethod
    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score: ...


class LetterTask(Task):
    """Four-choice questions as published: the greedy next token must be the letter of the key."""

    places = 1

    def __init__(self, model: Model, source: Questions):
        self.model, self.source = model, source

    def samples(self, split: Split) -> list[Sample]:
        return [Sample(q.id, q, LETTERS[q.answer]) for q in self.source.questions(split)]

    def sequences(self, sample: Sample) -> list[list[int]]:
        return [self.model.tokenizer(prompt(sample.source)).input_ids]

    def predict(self, sample: Sample, logits: list[Tensor]) -> str:
        """The greedy next token, without spaces: the answer's letter where all is well."""
        return self.model.tokenizer.decode(int(logits[0][-1].argmax())).strip()

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Accuracy, 0..1."""
        rows = [
            {"name": s.name, "label": s.label, "prediction": p, "correct": int(p == s.label)}
            for s, p in zip(samples, predictions, strict=True)
        ]
        return Score("accuracy", sum(row["correct"] for row in rows) / len(rows), rows)


class LikelihoodTask(LetterTask):
    """Questions whose answer is the choice with the highest likelihood per byte of its text.

    The model reads question and choice; small models, which do not answer with letters, are asked so
    (``acc_norm`` of the Language Model Evaluation Harness). The question's states are sent once, then
    those of each choice.
    """

    places = 0

    def origin(self) -> dict[str, Any]:
        return {"answer": "likelihood"}

    def _context(self, sample: Sample) -> list[int]:
        return self.model.tokenizer(f"Question: {sample.source.stem}\nAnswer:").input_ids

    def sequences(self, sample: Sample) -> list[list[int]]:
        context = self._context(sample)
        choices = [f" {text}" for text in sample.source.choices]
        ids = [self.model.tokenizer(text, add_special_tokens=False).input_ids for text in choices]
        return [context + each for each in ids]

    def shared(self, sample: Sample) -> int:
        return len(self._context(sample))

    def predict(self, sample: Sample, logits: list[Tensor]) -> str:
        start, per_byte = self.shared(sample), []
        for text, ids, each in zip(
            sample.source.choices, self.sequences(sample), logits, strict=True
        ):
            found = each[start - 1 : -1].float().log_softmax(-1)  # (tokens of the choice, V)
            chosen = found.gather(-1, torch.tensor(ids[start:], device=found.device)[:, None])
            per_byte.append(float(chosen.double().sum()) / len(text.encode()))
        return LETTERS[max(range(len(per_byte)), key=per_byte.__getitem__)]


class LanguageTask(Task):
    """Language modelling: windows of a text, each from the beginning-of-sequence token on.

    Args:
        window: tokens of a window, that token included.
        counts: windows by split; a split that is not named has all of its text.
    """

    judged = slice(-1)

    def __init__(self, model: Model, source: Texts, window: int, counts: dict[str, int]):
        self.model, self.source, self.window, self.counts = model, source, window, counts
        self.kept: dict[str, Tensor] = {}

    def samples(self, split: Split) -> list[Sample]:
        """One sample per window; its source are the ids. The rest of the text, shorter than a window, is
        left out. Splits of one text follow one another in it.

        Raises:
            UserError: the text is too short, or the splits before this one leave nothing of it.
        """
        ids = self._ids(split)
        first = sum(splits_before(self.source, self.counts, split))
        length = self.window - 1
        count = self.counts.get(split, len(ids) // length - first)
        if count < 1 or (first + count) * length > len(ids):
            raise UserError(
                f"{self.source.list_path(split)}: {len(ids)} tokens are {len(ids) // length} windows; "
                f"{split} wants {count if split in self.counts else 1} after {first} of other splits"
            )
        starts = range(first * length, (first + count) * length, length)
        begin = self._begin()
        return [
            Sample(f"window{number:05d}", [begin, *ids[start : start + length]], None)
            for number, start in enumerate(starts)
        ]

    def origin(self) -> dict[str, Any]:
        """A text that is not there is not told."""
        counts = {name: self.counts[name] for name in SPLITS if name in self.counts}
        return {"window": self.window, "counts": counts, "texts": digest_texts(self.source)}

    def _ids(self, split: Split) -> list[int]:
        texts = self.source.texts(split)
        ids = self.model.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return [token for each in ids for token in each]

    def _begin(self) -> int:
        for token in (self.model.tokenizer.bos_token_id, self.model.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise UserError("checkpoint: the tokenizer names no token that begins a sequence")

    def sequences(self, sample: Sample) -> list[list[int]]:
        return [sample.source]

    def targets(self, sample: Sample) -> list[int]:
        """The tokens that the logits predict, all rows but the last."""
        return sample.source[1:]

    def predict(self, sample: Sample, logits: list[Tensor]) -> dict[str, float]:
        """Sums over the window's predicted tokens: negative log-likelihoods in nats, places where the
        most likely token is the uncut model's, KL divergence from the uncut model's distribution in
        nats."""
        coded, uncut = logits[0][:-1], self._uncut(sample)[:-1]
        targets = torch.tensor(self.targets(sample), device=coded.device)[:, None]
        found = {"tokens": len(targets), "nll": 0.0, "uncut_nll": 0.0, "same": 0, "kl": 0.0}
        for part in (slice(place, place + PLACES) for place in range(0, len(targets), PLACES)):
            own, other = log_probs(coded[part]), uncut[part].to(coded.device)
            for name, log in (("nll", own), ("uncut_nll", other)):
                found[name] -= float(log.gather(-1, targets[part]).double().sum())
            found["same"] += int((own.argmax(-1) == other.argmax(-1)).sum())
            found["kl"] += float((other.exp() * (other - own)).sum(-1).double().sum())
        return found

    def _uncut(self, sample: Sample) -> Tensor:
        """Log-probabilities of the uncut model, (T, vocabulary), kept while there is room."""
        if sample.name not in self.kept:
            found = log_probs(self.model.uncut(sample)).cpu()
            if (len(self.kept) + 1) * found.nbytes > KEPT_BYTES:
                return found
            self.kept[sample.name] = found
        return self.kept[sample.name]

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Perplexity, less is better; agreement 0..1, KL in nats, the uncut model's perplexity."""
        sums, rows = dict.fromkeys(("tokens", "nll", "uncut_nll", "same", "kl"), 0), []
        for sample, found in zip(samples, predictions, strict=True):
            sums = {key: value + found[key] for key, value in sums.items()}
            rows.append({"name": sample.name, **_figures(found)})
        figures = _figures(sums)
        return Score("perplexity", figures.pop("perplexity"), rows, figures, less_is_better=True)


class ContinuationTask(LanguageTask):
    """Windows of a text, of which the model is sent the first tokens' state and reads the others.

    Args:
        prefix: tokens whose state is sent, the beginning-of-sequence token included.
    """

    def __init__(
        self, model: Model, source: Texts, window: int, counts: dict[str, int], prefix: int
    ):
        super().__init__(model, source, window, counts)
        self.prefix = prefix

    def origin(self) -> dict[str, Any]:
        return super().origin() | {"prefix": self.prefix}

    def sequences(self, sample: Sample) -> list[list[int]]:
        return [sample.source[: self.prefix]]

    def rest(self, sample: Sample) -> list[int]:
        """The tokens that are read after those whose state is sent."""
        return sample.source[self.prefix :]

    def targets(self, sample: Sample) -> list[int]:
        return self.rest(sample)


def _figures(sums: dict[str, float]) -> dict[str, float]:
    tokens = sums["tokens"]
    return {
        "perplexity": _exp(sums["nll"] / tokens),
        "uncut_perplexity": _exp(sums["uncut_nll"] / tokens),
        "agreement": sums["same"] / tokens,
        "kl": sums["kl"] / tokens,
    }


def _exp(value: float) -> float:
    return math.exp(min(value, 700))  # records hold finite numbers


def log_probs(logits: Tensor) -> Tensor:
    """Logits (T, vocabulary) -> log-probabilities, float32."""
    return logits.float().log_softmax(-1)


def join(states: Sequence[Tensor], shared: int) -> Tensor:
    """Hidden states (1, T_i, width) of sequences that begin alike -> (1, T, width): the beginning once,
    then the rest of each."""
    return torch.cat([states[0][:, :shared], *(each[:, shared:] for each in states)], dim=1)


def split(joined: Tensor, lengths: Sequence[int], shared: int) -> list[Tensor]:
    """The states of each sequence again: :func:`join` undone.

    Args:
        lengths: T_i of each.
    """
    ends = [shared]
    for length in lengths:
        ends.append(ends[-1] + length - shared)
    return [
        torch.cat([joined[:, :shared], joined[:, first:last]], dim=1)
        for first, last in pairwise(ends)
    ]


def prompt(question: Question) -> str:
    """The published prompt, up to the place of the answer's letter.

    As published, four choices are listed: a fifth is left out, a missing fourth repeats the third.
    """
    lines = [f"{LETTERS[i]}: {text}" for i, text in enumerate(question.choices[:ASKED])]
    lines += lines[-1:] * (ASKED - len(lines))
    return (
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following question and four candidate answers (A, B, C and D), choose the best "
        f"answer.\nQuestion: {question.stem}\n" + "\n".join(lines) + "\n"
        'Your response should end with "The best answer is [the_answer_letter]" where the '
        "[the_answer_letter] is one of A, B, C or D.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe best answer is"
    )
