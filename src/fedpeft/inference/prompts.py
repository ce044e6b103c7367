"""Prompts: a text or a conversation becomes the tokens that a language model answers to.

messages ──the run's chat template──> <user> ... <assistant>     the model writes on from here
text     ──where there is no template──> the text itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.core.errors import DataError, ModelError
from fedpeft.data.chat_templates import ChatTemplate, open_template
from fedpeft.data.conversations import Message
from fedpeft.data.preprocessing import Preprocessing
from fedpeft.models.loaded import LoadedModel, TextInput
from fedpeft.models.padding import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompts:
    """How prompts are written for a model.

    Attributes:
      tokenizer: of the model.
      template: the chat template; None where there is none.
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None

    def tokens(self, prompt: str | Sequence[Message], place: str = "the conversation") -> list[int]:
        """Return the tokens of a text, or of a conversation up to the answer.

        Args:
          prompt: a text, which is what the user says where there is a template; or messages.
          place: words for where it stands, for messages.

        Raises:
          DataError: if the template refuses the conversation, or there is no template for it.
        """
        if self.template is None:
            if not isinstance(prompt, str):
                raise DataError(
                    "INPUT: found a conversation, and neither the run nor the model's tokenizer "
                    "has a chat template; give a text"
                )
            return list(self.tokenizer(prompt)["input_ids"])
        said: Message = {"role": "user", "content": prompt}
        messages = [said] if isinstance(prompt, str) else prompt
        text = self.template.render(messages, place, prompt=True)
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
    written = text.chat_template if text else ""
    if not written and not tokenizer.chat_template:
        return Prompts(tokenizer, None)
    return Prompts(tokenizer, open_template(tokenizer, written or None, loaded.source))
