"""From `[answers]` to an exam of the run's language model: before any training, so that what is
wrong with it ends the run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpeft.answers.choices import read_items
from fedpeft.answers.generate import Decoding, stop_tokens
from fedpeft.answers.judge import Exam, choose_questions
from fedpeft.core.errors import ConfigError
from fedpeft.data.chat_templates import ChatTemplate
from fedpeft.data.examples import Federated
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.loaded import TextInput
from fedpeft.models.padding import open_tokenizer
from fedpeft.tuning.tuned import TunedModel


def build_exam(resolved: Resolved, tuned: TunedModel, data: Federated) -> Exam | None:
    """Choose the questions of a run's exam; None without `[answers]`.

    Raises:
      ConfigError: if the model is no language model, or its test set asks nothing, or scores are
        given for no answers.
      DataError: if the file of multiple choice cannot be used.
    """
    answers, loaded = resolved.experiment.answers, tuned.loaded
    if answers is None and resolved.given.scores:
        raise ConfigError(
            f"scores: found {', '.join(resolved.given.scores)} without [answers], so no answer is "
            "generated; set answers.num_examples"
        )
    if answers is None:
        return None
    if not (loaded.task.goes_on and isinstance(loaded.inputs, TextInput)):
        raise ConfigError(
            f"[answers]: the model's task is {loaded.task.name}; only language models answer "
            "(model.task = 'causal-lm'): leave the table out"
        )
    groups: Mapping[str, Sequence[int]] = {
        name: rows.tolist() for name, rows in data.test_clients.items()
    } or {"": range(len(data.test))}
    questions = choose_questions(data.test, groups, answers.num_examples)
    if answers.num_examples and not questions:
        raise ConfigError(
            f"answers.num_examples: found {answers.num_examples}, but nothing is asked in the test "
            f"set of {data.name}: all of its texts is learnt, as of documents. Give data with "
            "answers (messages, or prompt and completion), or set it to 0"
        )
    tokenizer = open_tokenizer(loaded.inputs.folder)
    text = data.preprocessing.text if data.preprocessing else None
    template = ChatTemplate(tokenizer, text.chat_template) if text and text.chat_template else None
    return Exam(
        tokenizer,
        questions,
        resolved.scores,
        read_items(Path(answers.choices)) if answers.choices else (),
        Decoding(answers.max_new_tokens),
        stop_tokens(loaded, tokenizer, template),
    )
