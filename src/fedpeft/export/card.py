"""The model card of an export: what the model is, how it came about, what it promises.

A card has a YAML header for the hub, and lists the base, the federation, the bytes, the data and
its partition, privacy, results, versions, how to load it, and limits.

Reference: Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.models.tasks import Task
from fedpeft.results.runs import Group, Run, describe_partition
from fedpeft.results.table import (
    Row,
    bytes_text,
    count_text,
    metric_text,
    row_of,
    seconds_text,
)
from fedpeft.runs.load import ExportInfo

__all__ = ["CardFacts", "model_card"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
      run: the run folder.
      info: what the export holds.
      task: of the model.
      base_card: text of the base model's own card, or "".
      backbone_class: name of the model's class.
    """

    run: Run
    info: ExportInfo
    task: Task
    base_card: str
    backbone_class: str


def model_card(facts: CardFacts) -> str:
    """Write the card."""
    row = row_of(Group(facts.run.method, (facts.run,)))
    parts = [
        _header(facts),
        f"# {facts.info.experiment.name}: {facts.run.method}\n",
        _lead(facts),
        _results(facts, row),
        _federation(facts, row),
        _data(facts),
        _privacy(row),
        _loading(facts),
        _limits(facts),
        _versions(facts),
    ]
    return "\n".join(parts)


def _header(facts: CardFacts) -> str:
    """The YAML header; JSON strings are YAML strings."""
    libraries = {"merged": "transformers", "peft": "peft", "fedpeft": "fedpeft"}
    model, source = facts.info.experiment.model.name, facts.info.experiment.data.source
    lines = [f"library_name: {libraries[facts.info.kind]}"]
    if licence := _licence(facts.base_card):
        lines.append(f"license: {json.dumps(licence)}")
    if _HUB_ID.fullmatch(model):
        lines.append(f"base_model: {json.dumps(model)}")
    if _HUB_ID.fullmatch(source):
        lines += ["datasets:", f"- {json.dumps(source)}"]
    lines += [f"pipeline_tag: {facts.task.pipeline}", "metrics:", f"- {facts.run.metric.name}"]
    tags = ["federated-learning", "parameter-efficient-fine-tuning", "fedpeft", facts.run.method]
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    return "\n".join(["---", *lines, "---", ""])


def _licence(card: str) -> str:
    """The licence in the header of a card, or ""."""
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", header.group(1), re.MULTILINE) if header else None
    return found.group(1).strip("\"'") if found else ""


def _lead(facts: CardFacts) -> str:
    experiment = facts.info.experiment
    licence = _licence(facts.base_card)
    terms = (
        f"The base model's licence is {licence}."
        if licence
        else "The licence of the base model is not known here: look it up before you pass this on."
    )
    return (
        f"`{experiment.model.name}` ({facts.backbone_class}, {facts.task.name}), fine-tuned by the "
        f"method **{facts.run.method}** over {experiment.federation.rounds} federated rounds on "
        f"`{experiment.data.source}` with fedpeft. "
        f"{terms}\n"
    )


def _results(facts: CardFacts, row: Row) -> str:
    metric, settings = facts.run.metric, facts.run.settings
    split = settings.get("data.evaluate_on", "test")
    best = f"{metric_text(row.best, metric)} (round {row.best_round}"
    lines = [
        ("Evaluated on", f"the server's whole {split} set"),
        (f"{metric.title}, last round", metric_text(row.last, metric)),
        (f"{metric.title}, best round", f"{best}; picked by looking at that set)"),
        ("Seed", f"{settings.get('seed')} (one run: no spread is known)"),
    ]
    return _table("Results", lines)


def _federation(facts: CardFacts, row: Row) -> str:
    experiment = facts.info.experiment
    federation, client = experiment.federation, experiment.client
    share = f" ({100 * row.share:.3g} % of the model)" if row.share else ""
    partition = facts.run.partition
    clients = len(partition.clients) if partition else experiment.data.partition.clients
    lines = [
        ("Rounds", federation.rounds),
        ("Clients", clients),
        ("Clients per round", federation.clients_per_round),
        ("Algorithm", _with_options(federation.algorithm, federation.options)),
        (
            "Local training",
            f"{client.epochs} epochs, batches of {client.batch_size}, {client.optimizer}, "
            f"learning rate {client.lr}",
        ),
        ("Tuning options", _with_options(facts.run.method, experiment.tuning.options)),
        ("Trained parameters", f"{count_text(row.trained)}{share}"),
        (
            "Payload of one client and round, one way",
            f"{count_text(row.payload)} B = {bytes_text(row.payload)}",
        ),
        ("Bytes sent, both ways, all clients and rounds", _total(row)),
        ("Time", seconds_text(row.seconds.mean if row.seconds else None)),
        ("Delta, SHA-256", f"`{facts.info.delta_digest}`"),
    ]
    if facts.info.backbone:
        lines.append(("Frozen backbone, SHA-256", f"`{facts.info.backbone}`"))
    return _table("Training", lines)


def _total(row: Row) -> str:
    total = row.total_bytes.mean if row.total_bytes else None
    return f"{count_text(total)} B as encoded = {bytes_text(total)}"


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{key} {value}" for key, value in options.items())])


def _data(facts: CardFacts) -> str:
    data = facts.info.experiment.data
    partition = data.partition
    scheme = f"{partition.scheme}, {partition.clients} clients"
    if partition.scheme.startswith("dirichlet"):
        scheme += f", α {partition.alpha}"
    lines = [("Data set", f"`{data.source}`"), ("Partition", scheme)]
    if data.budget:
        lines.append(("Training budget", f"{data.budget} examples, drawn before the partition"))
    if facts.run.partition:
        lines.append(("Spread", describe_partition(facts.run.partition)))
    return _table("Data", lines)


def _privacy(row: Row) -> str:
    if row.epsilon is None:
        text = (
            "No differential privacy was used. Examples stayed with their clients, but updates "
            "reached the server in the clear, and nothing is promised about what this model "
            "reveals of its training data."
        )
    else:
        text = f"Differential privacy: ε = {row.epsilon:.4g} over the whole run."
    if row.privacy_note:
        text += f" **{row.privacy_note[0].upper()}{row.privacy_note[1:]}.**"
    return f"## Privacy\n\n{text}\n"


def _loading(facts: CardFacts) -> str:
    auto, info = facts.task.auto_class, facts.info
    call = "**tokens" if facts.task.inputs == "text" else "pixel_values=x"
    stock = facts.backbone_class != "ShuffleNet"
    lines = ["## How to load", ""]
    if info.kind == "merged" and stock:
        lines += [
            "An ordinary model of `transformers`:",
            _code(f"from transformers import {auto}", f"model = {auto}.from_pretrained(folder)"),
        ]
    elif info.kind == "peft":
        lines += list(_peft_lines(facts, auto))
    else:
        lines.append(
            "**Stock libraries cannot load this folder**: transformers and peft do not know the "
            f"method `{facts.run.method}` on this model. Use fedpeft:"
        )
    if info.kind != "fedpeft" and stock:
        lines.append("Or, without caring what it is:")
    lines.append(
        _code("import fedpeft", "model = fedpeft.load(folder)", f"logits = model({call}).logits")
    )
    return "\n".join(lines)


def _peft_lines(facts: CardFacts, auto: str) -> Iterator[str]:
    if facts.info.base:
        yield (
            f"An adapter of `peft`, head included, with its base model in `{facts.info.base}/`. "
            "`base_model_name_or_path` is relative to this folder, so load the base by its path:"
        )
        base = f'{auto}.from_pretrained(folder + "/{facts.info.base}")'
    else:
        model = facts.info.experiment.model
        labels = f", num_labels={model.num_labels}" if model.num_labels else ""
        revision = f", revision={json.dumps(model.revision)}" if model.revision else ""
        yield "An adapter of `peft`, head included; its base model is on the hub:"
        base = f"{auto}.from_pretrained({json.dumps(model.name)}{labels}{revision})"
    yield _code(
        "from peft import PeftModel",
        f"from transformers import {auto}",
        f"base = {base}",
        "model = PeftModel.from_pretrained(base, folder).eval()",
    )
    if facts.task.per_token and facts.run.method in ("prompt_tuning", "p_tuning"):
        yield (
            "`peft` returns logits of the learned tokens too, before those of the text; "
            "`fedpeft.load` returns those of the text alone.\n"
        )


def _limits(facts: CardFacts) -> str:
    items = [
        "Trained and evaluated on the data named above, with one seed; nothing is known about "
        "other data, and nothing was done about biases of the base model or of the data.",
        "The figures are those of a federation on one machine; real clients drop out and differ "
        "more.",
    ]
    if facts.info.experiment.data.transforms.normalize == "dataset":
        items.append(
            "Images were normalised by the training set's own mean and deviation; "
            "`preprocessor_config.json` has the base model's."
        )
    return "## Limits\n\n" + "\n".join(f"- {item}" for item in items) + "\n"


def _versions(facts: CardFacts) -> str:
    found = facts.run.environment.get("versions", {})
    lines = [(name, number) for name, number in found.items() if number]
    return _table("Versions", lines or [("", "not recorded")])


def _table(title: str, lines: list[tuple[str, Any]]) -> str:
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in lines)
    return f"## {title}\n\n| | |\n| --- | --- |\n{rows}\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _code(*lines: str) -> str:
    return "\n```python\n" + "\n".join(lines) + "\n```\n"
