"""`predict` and `chat`: a finished model, tried out in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from fedpeft.answers.generate import Decoding
from fedpeft.cli.printing import say, show, show_table
from fedpeft.core.errors import ModelError
from fedpeft.core.text import brief
from fedpeft.data.conversations import Message
from fedpeft.inference.chat import AFTER, Chat, start_chat
from fedpeft.inference.inputs import read_inputs
from fedpeft.inference.predict import Prediction, predict
from fedpeft.inference.readings import Label
from fedpeft.runs.load import BeforeAndAfter, load_before_and_after

_NEW, _END = "/new", ("/bye", "/exit", "/quit")


@dataclass(frozen=True)
class Trying:
    """The options that both commands share, as they were typed."""

    max_new_tokens: int
    temperature: float
    seed: int
    both: bool

    @property
    def decoding(self) -> Decoding:
        """How tokens are chosen."""
        return Decoding(self.max_new_tokens, self.temperature, self.seed)


def predict_command(run: Path, given: str, options: Trying, *, as_json: bool) -> None:
    """Print what a finished model makes of some inputs.

    Raises:
      RunFolderError: if the folder is no finished run and no export.
      DataError: if an input cannot be read.
    """
    decoding = options.decoding
    model = _opened(run, options)
    inputs = read_inputs(given, model.tuned.loaded.task, sys.stdin)
    found = list(predict(model, inputs, decoding, both=options.both))
    if as_json or isinstance(found[0].after, str):
        show([each.as_json() for each in found], _answer_lines(found), as_json=as_json)
        return
    both = any(each.before is not None for each in found)
    names: tuple[str, ...] = ("before", "after") if both else ("prediction",)
    if isinstance(found[0].after, Label):
        labels = ("before", "after") if both else ("label",)
        names = tuple(word for label in labels for word in (label, "probability"))
    show_table(("input", *names), _rows(found))


def chat_command(run: Path, options: Trying) -> None:
    """Read lines from standard input and print the answers to each, until its end.

    Raises:
      RunFolderError: if the folder is no finished run and no export.
      ModelError: if its model is no language model.
    """
    decoding = options.decoding
    chat = start_chat(_opened(run, options), decoding, both=options.both)
    asks = sys.stdin.isatty()
    if asks:
        say(f"{_NEW} starts a new conversation, {_END[0]} or Ctrl-D ends", err=True)
        if not chat.remembers:
            say("no chat template: each text is continued, nothing is remembered", err=True)
    memory: dict[str, list[Message]] = {side: [] for side in chat.sides}
    for text in _lines(asks):
        if text in _END:
            return
        if text == _NEW:
            memory = {side: [] for side in chat.sides}
            continue
        _answer(chat, memory, text)


def _opened(run: Path, options: Trying) -> BeforeAndAfter:
    model = load_before_and_after(run)
    if options.both and model.before is None:
        say(f"{run}: holds the trained weights alone, so there is no 'before' to show", err=True)
    return model


def _lines(asks: bool) -> Iterator[str]:
    """Yield what the user types, without blank lines."""
    while True:
        if asks:
            typer.echo("> ", nl=False)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(chat: Chat, memory: dict[str, list[Message]], text: str) -> None:
    """Print the answer of each side as it is written; a conversation that is too long is said."""
    for side, messages in memory.items():
        if len(chat.sides) > 1:
            typer.echo(f"{side}: ", nl=False)
        try:
            for piece in chat.say(side, messages, text):
                typer.echo(piece, nl=False)
                sys.stdout.flush()
        except ModelError as error:
            say(f"\n{error}; {_NEW} starts a new conversation", err=True)
        typer.echo("")


def _rows(found: Sequence[Prediction]) -> Iterator[list[str]]:
    for each in found:
        row = [brief(each.input, 60)]
        for part in (each.before, each.after):
            if isinstance(part, Label):
                row += [part.label, f"{part.probability:.3f}"]
            elif part is not None:
                row.append(str(part))
        yield row


def _answer_lines(found: Sequence[Prediction]) -> Iterator[str]:
    for each in found:
        yield f"input: {brief(each.input)}"
        if each.before is not None:
            yield f"before: {each.before}"
        yield f"{AFTER}: {each.after}"
        yield ""
