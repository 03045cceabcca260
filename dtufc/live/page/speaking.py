"""Language models: the tokens that follow a text, and how likely they are."""

from typing import Any, NamedTuple

import numpy as np
import torch

from dtufc.live.page.painting import read_text
from dtufc.live.page.seeing import divergence, ranking
from dtufc.live.page.work import Distance, Given, Work
from dtufc.live.refusals import Refusal
from dtufc.live.single import NAME
from dtufc.machines.llama3.generate import BackHalf, FrontHalf
from dtufc.machines.machine import Sample
from dtufc.machines.sources.source import Question

LONGEST = 8192
"""Characters of a text."""
TOKENS = 384
"""Tokens of a text."""
CONTINUED = 8
"""Tokens behind the text that are shown."""
JUDGED = 32
"""Last places of the text whose distributions are compared."""


class Spoken(NamedTuple):
    """The back half's answer."""

    places: np.ndarray
    """Log-probabilities behind the last places of the text, (places, vocabulary) float32."""
    likeliest: np.ndarray
    """The likeliest token behind every token of the text, (tokens,)."""
    later: np.ndarray
    """Log-probabilities behind each token of the uncoded continuation, (CONTINUED - 1, vocabulary)."""


class Speaking(Work):
    """A causal language model."""

    takes = "text"
    asks = "continues a text"
    distance = Distance("KL divergence of the next token", "nats")

    @property
    def most(self) -> int:
        """Tokens of a text, so that its continuation has room."""
        places = self.machine.config.max_position_embeddings - CONTINUED
        return min(TOKENS, self.limits.frame_rows, places)

    def offer(self, sample: Sample) -> Given:
        (ids, *_) = self.machine.task.sequences(sample)
        source = sample.source
        title = source.stem if isinstance(source, Question) else f"Text {sample.name}"
        return self.given(ids[: self.most], title)

    def read(self, data: bytes) -> Given:
        text = read_text(data, LONGEST)
        ids = self.machine.tokenizer(text).input_ids
        if len(ids) > self.most:
            raise Refusal("size", f"a text of {len(ids)} tokens, {self.most} at most")
        return self.given(ids, "Your text")

    def given(self, ids: list[int], title: str) -> Given:
        tokens = [self.word(each) for each in ids]
        return Given(Sample(NAME, list(ids), None), title, {"tokens": tokens}, {})

    def word(self, token: int) -> str:
        return self.machine.tokenizer.decode([token])

    def extract(self, given: Given) -> np.ndarray:
        """The text's rows; those of its continuation are kept beside it."""
        front, back = FrontHalf(self.machine), BackHalf(self.machine)
        rows = front.step(given.sample.source)
        token = int(back.step(rows).argmax())
        ids, later = [token], []
        for _ in range(CONTINUED - 1):
            later.append(front.step([ids[-1]]))
            ids.append(int(back.step(later[-1]).argmax()))
        given.facts["later"] = np.stack(later)[None, None, :, 0]
        return rows[None, None]

    @torch.inference_mode()
    def answer(self, given: Given, feature: np.ndarray, codec: Any) -> Spoken:
        """One pass over the text and its uncoded continuation, which is coded likewise."""
        options, later = self.machine.options, given.facts["later"]
        if codec is not None:
            later = codec.decode(codec.encode(later, self.facts.kind))
        rows = torch.from_numpy(np.concatenate([feature, later], axis=2)[0])
        states = rows.to(options.torch_device, self.machine.back.dtype)
        logits = self.machine.back(inputs_embeds=states, use_cache=False).logits[0].float().cpu()
        count = feature.shape[2]
        shown = logits[-JUDGED - CONTINUED + 1 :].log_softmax(-1).numpy()
        first = len(shown) - CONTINUED + 1  # of the places behind the text
        return Spoken(shown[:first], logits[:count].argmax(-1).numpy(), shown[first:])

    def measure(self, answer: Spoken, uncoded: Spoken) -> float:
        return divergence(answer.places.astype(np.float64), uncoded.places.astype(np.float64))

    def show(self, answer: Spoken, uncoded: Spoken) -> dict[str, Any]:
        sides = [np.concatenate([s.places[-1:], s.later]) for s in (answer, uncoded)]
        continued = []
        for after, before in zip(*sides, strict=True):
            told, now = int(before.argmax()), int(after.argmax())
            continued.append(
                {
                    "text": self.word(told),
                    "uncoded": float(np.exp(before[told])),
                    "decoded": float(np.exp(after[told])),
                    "instead": None if now == told else self.word(now),
                }
            )
        changed = answer.likeliest != uncoded.likeliest
        words = self.word(int(answer.places[-1].argmax())).strip() or "white space"
        return {
            "kind": "ranking",
            "bars": ranking(sides[0][0], sides[1][0], self.word),
            "continued": continued,
            "changed": changed.tolist(),
            "words": f"next token “{words}”; {100 * (1 - changed.mean()):.3g} % of the likeliest tokens "
            "as uncoded",
        }
