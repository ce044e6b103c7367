"""Answers: the tokens of a conversation, and which of them are learnt.

    read     <user>|What is 2 + 2?|<end>|<assistant>|                 <user>|And 3 + 3? ...
    learnt                                           4|<end>

A turn of the assistant's is what the template writes after the prompt that it writes for the turns
before, up to the token that ends the turn: just what the model has to produce when it is used.
Templates that mark the assistant's words themselves (`{% generation %}`) are taken at their word.

Read and learnt stretches are tokenised apart, as they are when the model is used: no token spans
the end of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedpeft.core.errors import DataError
from fedpeft.data.chat_templates import ChatTemplate
from fedpeft.data.conversations import ASSISTANT, LEARN, Conversation, Message

_CHUNK = 256
_OTHERWISE = (
    "learn only the last answer (data.learn = 'last'), or set data.chat_template to a template "
    "that marks the answers with {% generation %}"
)


@dataclass(frozen=True)
class Written:
    """A conversation as tokens.

    Attributes:
      tokens: in order.
      learnt: whether each of them is a target; the first never is, for want of a token before it.
    """

    tokens: list[int]
    learnt: list[bool]

    def __len__(self) -> int:
        return len(self.tokens)


def write_conversations(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    learn: str,
    place: Callable[[int], str] = "row {}".format,
) -> Iterator[Written]:
    """Yield the tokens of each conversation, in order, with those that are learnt.

    A turn of the assistant's that opens a conversation answers nothing: it is read.

    Args:
      conversations: lists of messages.
      template: how they are written.
      learn: one of `LEARN`.
      place: gives the words for where a conversation stands, for messages.

    Raises:
      DataError: if the template cannot write a conversation, or if it cannot be said which tokens
        of it are an answer.
    """
    if learn == LEARN[0] and template.marks_answers:
        for row, messages in enumerate(conversations):
            yield _written(*template.marked(messages, place(row)))
        return
    for start in range(0, len(conversations), _CHUNK):
        parts = [
            _stretches(conversations[row], template, learn, place(row))
            for row in range(start, min(start + _CHUNK, len(conversations)))
        ]
        yield from _tokenised(parts, template)


@dataclass(frozen=True)
class _Stretch:
    """A part of a rendered conversation that is read as a whole or learnt as a whole."""

    text: str
    learnt: bool


def _stretches(
    messages: Conversation, template: ChatTemplate, learn: str, place: str
) -> list[_Stretch]:
    """Render a conversation and cut it where answers begin and end."""
    whole = template.render(messages, place)
    if learn == "all":
        return [_Stretch(whole, learnt=True)]
    turns = [turn for turn, each in enumerate(messages) if turn and each["role"] == ASSISTANT]
    stretches, end = [], 0
    for turn in turns[-1:] if learn == "last" else turns:
        start, stop = _answer(messages, turn, whole, template, f"turn {turn + 1} of {place}")
        stretches += [_Stretch(whole[end:start], False), _Stretch(whole[start:stop], True)]
        end = stop
    return [each for each in [*stretches, _Stretch(whole[end:], False)] if each.text]


def _answer(
    messages: Conversation, turn: int, whole: str, template: ChatTemplate, place: str
) -> tuple[int, int]:
    """Return where a turn of the assistant's begins and ends in a rendered conversation."""
    prompt = template.render(messages[:turn], place, prompt=True)
    is_last = turn == len(messages) - 1
    so_far = whole if is_last else template.render(messages[: turn + 1], place)
    if not so_far.startswith(prompt):
        raise DataError(
            f"data.chat_template: the template writes {place} in another way than it begins an "
            "answer (add_generation_prompt), so it cannot be said which tokens are the answer: set "
            "data.chat_template to a template that marks the answers with {% generation %}"
        )
    answer = so_far[len(prompt) :]
    begin, stop = _content(answer, messages[turn], template)
    if begin < 0:
        raise DataError(
            f"data.chat_template: the template does not write the whole of {place} after its "
            "prompt, so it cannot be said which tokens are the answer: set data.chat_template to a "
            "template that marks the answers with {% generation %}"
        )
    if answer[:begin].strip() and prompt == template.render(messages[:turn], place):
        raise DataError(
            "data.chat_template: the template begins no answer (it does not read "
            f"add_generation_prompt), so the model would have to learn {answer[:begin]!r} as a "
            f"part of {place}: set data.chat_template to a template that writes it where "
            "add_generation_prompt is true"
        )
    if not whole.startswith(so_far[: len(prompt) + stop]):
        raise DataError(
            f"data.chat_template: the template writes {place} in another way once turns follow it, "
            f"so it cannot be said which tokens are its answer: {_OTHERWISE}"
        )
    return len(prompt), len(prompt) + stop


def _content(answer: str, message: Message, template: ChatTemplate) -> tuple[int, int]:
    """Return where a message's content begins in what the template wrote, and where the turn ends.

    A turn ends with the special tokens that follow its content; with all that the template wrote
    where none does. What a template writes behind them belongs to no answer: a line break, or the
    end of the whole text.

    Returns:
      (first character of the content, or -1 if it is not there; first behind the end of the turn).
    """
    content = str(message["content"]).strip()
    hidden, found = template.hide(answer), template.hide(content)  # an answer may be "end"
    begin = hidden.rfind(found) if content else 0
    behind = begin + len(content)
    if {*message} - {"role", "content"}:  # a call of a tool may be written behind the content
        ends = list(template.special.finditer(answer, behind))[-1:]
    else:
        ends = list(template.special.finditer(answer, behind))[:1]
    return begin, ends[0].end() if ends else len(answer)


def _tokenised(parts: Sequence[list[_Stretch]], template: ChatTemplate) -> Iterator[Written]:
    """Tokenise conversations that are cut into stretches."""
    whole = _encode(["".join(each.text for each in part) for part in parts], template)
    pieces = iter(_encode([each.text for part in parts for each in part], template))
    for part, tokens in zip(parts, whole, strict=True):
        apart = [next(pieces) for _ in part]
        if [token for piece in apart for token in piece] != tokens:
            apart = list(_in_context(part, template))
        pairs = zip(apart, part, strict=True)
        learnt = [each.learnt for piece, each in pairs for _ in piece]
        yield _written([token for piece in apart for token in piece], learnt)


def _in_context(part: Sequence[_Stretch], template: ChatTemplate) -> Iterator[list[int]]:
    """Yield the tokens of each stretch where the tokens of the whole text span their borders.

    Some tokenizers begin every text with a blank: that of a stretch is what is new where it is
    tokenised behind what is before it, or behind a line break.
    """
    before, text = list[int](), ""
    for stretch in part:
        text += stretch.text
        line, after_line, together, alone = _encode(
            ["\n", "\n" + stretch.text, text, stretch.text], template
        )
        if together[: len(before)] == before:
            found = together[len(before) :]
        elif after_line[: len(line)] == line:
            found = after_line[len(line) :]
        else:
            found = alone
        before = [*before, *found]
        yield found


def _encode(texts: list[str], template: ChatTemplate) -> list[list[int]]:
    """Tokenise texts in which the template wrote the special tokens."""
    if not texts:
        return []
    found = template.tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [list(tokens) for tokens in found["input_ids"]]


def _written(tokens: list[int], learnt: list[bool]) -> Written:
    return Written(tokens, [False, *learnt[1:]] if learnt else [])
