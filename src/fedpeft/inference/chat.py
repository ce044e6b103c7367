"""A conversation with a finished language model, and with the model before training beside it.

    each has its own conversation:   user, answer before, user, answer before ...
                                     user, answer after,  user, answer after ...

A model without a chat template continues each text by itself; nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedpeft.answers.generate import Decoding, generate, stop_tokens
from fedpeft.answers.questions import text_of
from fedpeft.data.conversations import Message
from fedpeft.inference.prompts import Prompts, prompts_of
from fedpeft.runs.load import BeforeAndAfter, Weights

BEFORE, AFTER = "before", "after"
"""Names of the two sides: the model before training, and the finished one."""


@dataclass(frozen=True)
class Chat:
    """A conversation; its state is the messages that are passed to `say` and returned by it.

    Attributes:
      model: the finished model.
      prompts: how prompts are written.
      stops: the tokens that end an answer.
      decoding: how tokens are chosen.
      sides: name of a side -> its weights, in the order in which they answer.
    """

    model: BeforeAndAfter
    prompts: Prompts
    stops: frozenset[int]
    decoding: Decoding
    sides: dict[str, Weights]

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are a part of the prompt."""
        return self.prompts.template is not None

    def say(self, side: str, messages: list[Message], text: str) -> Iterator[str]:
        """Yield the pieces of one side's answer to a text, and add both to its messages.

        Args:
          side: a key of `sides`.
          messages: of that side, so far; the text and its answer are appended at the end.
          text: what the user says.

        Raises:
          ModelError: if the conversation has become longer than the model reads.
        """
        self.model.take(self.sides[side])
        asked: Message = {"role": "user", "content": text}
        prompt = self.prompts.tokens([*messages, asked] if self.remembers else text)
        tokens, shown = list[int](), ""
        for token in generate(self.model.tuned, prompt, self.stops, self.decoding):
            tokens.append(token)
            whole = text_of(self.prompts.tokenizer, tokens)
            if whole.endswith("\ufffd"):
                continue  # in the middle of a character
            yield whole[len(shown) :]
            shown = whole
        whole = text_of(self.prompts.tokenizer, tokens)
        yield whole[len(shown) :]
        if self.remembers:
            messages += [asked, {"role": "assistant", "content": whole}]


def start_chat(model: BeforeAndAfter, decoding: Decoding, *, both: bool) -> Chat:
    """Prepare a conversation with a finished model.

    Args:
      model: a language model.
      decoding: how tokens are chosen.
      both: whether the model before training answers too, where it is known.

    Raises:
      ModelError: if it is no language model, or has no tokenizer.
    """
    prompts = prompts_of(model.tuned.loaded, model.preprocessing)
    before = {BEFORE: model.before} if both and model.before is not None else {}
    stops = stop_tokens(model.tuned.loaded, prompts.tokenizer, prompts.template)
    return Chat(model, prompts, stops, decoding, {**before, AFTER: model.after})
