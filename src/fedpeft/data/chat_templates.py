"""Chat templates: the Jinja text by which a conversation becomes one text for a model.

    tokenizer's own          what the model was trained with, and what servers of models apply
    BUILT_IN[name]           for a base model, whose tokenizer has none
    a text of the user's     a file that `data.chat_template` names

`transformers` renders all of them, in its sandbox.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.core.errors import DataError
from fedpeft.data.conversations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
"""What a template that writes the current date gets, so that a run can be repeated. It is the date
that those of Llama 3 fall back to."""

_BEGIN = "<BEGIN>"
_ALPACA = (
    _BEGIN + "{% if messages[0]['role'] != 'system' %}"
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n{% endif %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ message['content'] }}\n\n{% elif message['role'] == 'assistant' %}"
    "### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% else %}"
    "### Instruction:\n{{ message['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
_NONE = (
    _BEGIN + "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
BUILT_IN: Mapping[str, str] = {"alpaca": _ALPACA, "none": _NONE}
"""Name -> template: the headings of Alpaca, or the contents one after the other; an answer ends
with the tokenizer's end of text."""

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_EXAMPLE = (
    "{% for m in messages %}<|{{ m.role }}|>\\n{{ m.content }}{{ eos_token }}\\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\\n{% endif %}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the tokenizer whose special tokens it writes.

    Attributes:
      tokenizer: of the model.
      text: the template, in Jinja.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str

    @property
    def marks_answers(self) -> bool:
        """Whether the template says itself, by `{% generation %}`, what the assistant writes."""
        return bool(_MARK.search(self.text))

    @functools.cached_property
    def special(self) -> re.Pattern[str]:
        """Finds special tokens in a text, those that follow each other at once together."""
        added = self.tokenizer.added_tokens_decoder.values()
        words = {each.content for each in added if each.special}
        words |= {*self.tokenizer.all_special_tokens}
        longest_first = sorted(map(re.escape, words), key=len, reverse=True)
        return re.compile(f"(?:{'|'.join(longest_first)})+" if words else "(?!)")

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The special tokens, one of which should end an answer."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = (token for token, content in added if content.special)
        return frozenset([*special, *self.tokenizer.all_special_ids])

    def hide(self, text: str) -> str:
        """Return a text with another character for each of its special tokens' characters."""
        return self.special.sub(lambda found: "\0" * len(found[0]), text)

    def render(self, messages: Sequence[Message], place: str, *, prompt: bool = False) -> str:
        """Write a conversation as a text.

        Args:
          messages: the conversation, or its beginning.
          place: words for where it stands.
          prompt: whether the words that begin the next answer follow.

        Raises:
          DataError: if the template refuses the conversation, or is no template.
        """
        with _refusing(place):
            found = self.tokenizer.apply_chat_template(
                [*map(dict, messages)],
                chat_template=_dated(self.text),
                add_generation_prompt=prompt,
                tokenize=False,
                date_string=DATE,
            )
        return str(found)

    def marked(self, messages: Sequence[Message], place: str) -> tuple[list[int], list[bool]]:
        """Return the tokens of a conversation, and which the template marks as the assistant's.

        Raises:
          DataError: as `render`.
        """
        with _refusing(place):
            found = self.tokenizer.apply_chat_template(
                [*map(dict, messages)],
                chat_template=_dated(self.text),
                return_dict=True,
                return_assistant_tokens_mask=True,
                date_string=DATE,
            )
        return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]


def open_template(
    tokenizer: PreTrainedTokenizerBase, chosen: str | None, model: str
) -> ChatTemplate:
    """Return the template of a run.

    Args:
      tokenizer: of the model.
      chosen: a name of `BUILT_IN`, or the text of a template; None is the tokenizer's own.
      model: folder or hub id of the model, for messages.

    Raises:
      DataError: if there is none, with what to do; or if the text is not Jinja.
    """
    if chosen is not None and chosen in BUILT_IN:
        begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        text = BUILT_IN[chosen].replace(_BEGIN, "{{ bos_token }}" if begins else "")
        return ChatTemplate(tokenizer, text)
    if chosen is not None:
        return ChatTemplate(tokenizer, chosen)
    if not tokenizer.chat_template:
        raise DataError(
            f"data.chat_template: the tokenizer of {model} has no chat template, so it is not "
            "known how a conversation is written for it. Take an instruction-tuned model; or set "
            "data.chat_template to 'alpaca' (headings), to 'none' (prompt and answer one after the "
            f"other), or to a file of your own with a Jinja template such as\n{_EXAMPLE}"
        )
    return ChatTemplate(tokenizer, str(tokenizer.get_chat_template()))


@contextlib.contextmanager
def _refusing(place: str) -> Iterator[None]:
    """Turn what a template raises, on purpose or not, into an error that names the conversation."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data.chat_template: the template cannot write {place}: {said[:200]}; change the "
            "turns or their roles, or set data.chat_template to a template that takes them"
        ) from error


def _dated(text: str) -> str:
    """Return a template in which the function for the current date gives `DATE`."""
    if "strftime_now" not in text:
        return text
    return "{%- macro strftime_now(format) -%}" + DATE + "{%- endmacro -%}" + text
