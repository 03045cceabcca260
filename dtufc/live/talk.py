"""One text of a language model, at the back half's side."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dtufc.machines.llama3.generate import BackHalf, greedy
from dtufc.machines.llama3.halves import LlamaMachine

UNFINISHED = "\ufffd"
"""What a tokenizer decodes to where the bytes of a character are not all there."""


class Token(NamedTuple):
    """What follows the rows of a frame."""

    id: int
    text: str
    """What it adds to the text; nothing while a character is unfinished, and for tokens that mean no
    text."""


class Words:
    """Token ids, one after the other -> the text that each adds.

    A tokenizer may write the same token otherwise behind another one, so that each is decoded together
    with the piece before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        before = self._decode(self._ids[: self._told])
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED):
            return ""
        self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        return text[len(before) :]


class Talk:
    """The back half's cache and the words so far."""

    def __init__(self, machine: LlamaMachine):
        tokenizer = machine.tokenizer
        self.back = BackHalf(machine)
        self._answer = greedy(self.back)
        self._words = Words(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))

    def step(self, feature: np.ndarray) -> Token:
        """The next rows, (1, 1, T, width) -> the token behind them."""
        return self.say(self._answer(feature[0, 0]))

    def say(self, token: int) -> Token:
        """A token with what it adds to the text."""
        return Token(token, self._words.add(token))


def step_together(talks: Sequence[Talk], features: Sequence[np.ndarray]) -> list[Token]:
    """The next row of several texts, (1, 1, 1, width) each -> the token behind each, in one batch.

    Raises:
        Exception: whatever a row was wrong with; the texts are then as they were.
    """
    from dtufc.machines.llama3.together import step_together as step

    tokens = step([talk.back for talk in talks], [feature[0, 0] for feature in features])
    return [talk.say(token) for talk, token in zip(talks, tokens, strict=True)]
