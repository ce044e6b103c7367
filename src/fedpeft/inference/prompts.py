"""Prompts: a text or a conversation becomes the tokens that a language model answers to.

messages ──the run's chat template──> <user> ... <assistant>     the model writes on from here
text     ──where there is no template──> the text itself
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.errors import DataError, ModelError
from fedpeft.core.text import plain
from fedpeft.data.preprocessing import Preprocessing
from fedpeft.models.loaded import LoadedModel, TextInput
from fedpeft.models.padding import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, str]
"""`role` (`system`, `user` or `assistant`) and `content`."""


@dataclass(frozen=True)
class Prompts:
    """How prompts are written for a model.

    Attributes:
      tokenizer: of the model.
      template: the chat template, in Jinja; "" where there is none.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str

    def tokens(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the tokens of a text, or of a conversation up to the answer.

        Raises:
          DataError: if the template refuses the conversation, or there is no template for it.
        """
        if not self.template:
            if not isinstance(prompt, str):
                raise DataError(
                    "INPUT: found a conversation, and neither the run nor the model's tokenizer "
                    "has a chat template; give a text"
                )
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(each) for each in messages],
                chat_template=self.template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"INPUT: the chat template refuses the conversation: {plain(error, 200)}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def prompts_of(loaded: LoadedModel, preprocessing: Preprocessing | None) -> Prompts:
    """Return how prompts are written: by the run's template, else by the tokenizer's own.

    Raises:
      ModelError: if the model is no language model, or has no tokenizer.
    """
    if not (loaded.task.goes_on and isinstance(loaded.inputs, TextInput)):
        raise ModelError(
            f"{loaded.source}: its task is {loaded.task.name}; only language models answer "
            "(model.task = 'causal-lm'): try `fedpeft predict`"
        )
    tokenizer = open_tokenizer(loaded.inputs.folder)
    text = preprocessing.text if preprocessing else None
    template = getattr(text, "chat_template", "") or tokenizer.chat_template or ""
    return Prompts(tokenizer, str(template))
