"""The model card of an export: the model, how it was trained, its privacy and its limits.

A card has a YAML header for the hub, with the figures of the last round as `model-index`, and lists
the base, the federation, the bytes, the data and its partition, privacy, results, versions, how to
load it, and limits. Its text is in card.md.jinja.

Reference: Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from fedpeft.core.templates import read_template
from fedpeft.data.preprocessing import Preprocessing
from fedpeft.models.tasks import Task
from fedpeft.results.runs import Run, describe_partition
from fedpeft.results.table import TEXTS, Spread, row_of_run
from fedpeft.runs.load import ExportInfo

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LIBRARIES = {"merged": "transformers", "peft": "peft", "fedpeft": "fedpeft"}
_ORDER = (
    *("library_name", "license", "base_model", "datasets", "pipeline_tag", "metrics", "tags"),
    *("model_name", "eval_results"),
)


@dataclass(frozen=True)
class CardFacts:
    """The facts that a card is written from.

    Attributes:
      run: the run, as read from its folder.
      info: the content of the export.
      task: the model's task.
      base_card: text of the base model's own card, or "".
      backbone_class: name of the model's class.
      preprocessing: how raw input became tensors; None where it is not known.
    """

    run: Run
    info: ExportInfo
    task: Task
    base_card: str
    backbone_class: str
    preprocessing: Preprocessing | None = None

    @property
    def licence(self) -> str:
        """The licence in the header of the base model's card, or ""."""
        header = re.match(r"---\n(.*?)\n---", self.base_card, re.DOTALL)
        found = re.search(r"^license:\s*(\S+)\s*$", header[1], re.MULTILINE) if header else None
        return found[1].strip("\"'") if found else ""

    @property
    def clients(self) -> str:
        """The number of clients; of natural ones, where the run recorded it."""
        asked = self.info.experiment.data.partition.clients
        found = self.run.environment.get("data", {}).get("clients", asked)
        return "as many as the data has" if found is None else str(found)

    @property
    def initial(self) -> Spread | None:
        """The headline metric of the untuned model; None where it is not known."""
        found = (self.run.summary or {}).get(f"initial_{self.run.metric.name}")
        return None if found is None else Spread(float(found), None)

    @property
    def split(self) -> str:
        """The split that the run was evaluated on."""
        return str(self.run.settings.get("data.evaluate_on", "test"))

    @property
    def versions(self) -> list[tuple[str, str]]:
        """The packages of the run, with their versions."""
        found = self.run.environment.get("versions", {})
        return [(name, number) for name, number in found.items() if number]


def model_card(facts: CardFacts) -> str:
    """Return the text of the card, header included."""
    filters = {**TEXTS, "json": json.dumps, "describe_partition": describe_partition}
    template = read_template(Path(__file__).parent / "card.md.jinja", filters, markup=False)
    body = template.render(facts=facts, row=row_of_run(facts.run))
    return f"---\n{_header(facts).to_yaml(original_order=list(_ORDER))}\n---\n\n{body.strip()}\n"


def _header(facts: CardFacts) -> ModelCardData:
    run, experiment = facts.run, facts.info.experiment
    model, source = experiment.model.name, experiment.data.source
    return ModelCardData(
        library_name=_LIBRARIES[facts.info.kind],
        license=facts.licence or None,
        base_model=model if _HUB_ID.fullmatch(model) else None,
        datasets=[source] if _HUB_ID.fullmatch(source) else None,
        pipeline_tag=facts.task.pipeline or None,
        metrics=[run.metric.name],
        tags=["federated-learning", "parameter-efficient-fine-tuning", "fedpeft", run.method],
        model_name=experiment.name,
        eval_results=[_result(facts, run.last)] if run.last is not None else None,
    )


def _result(facts: CardFacts, last: float) -> EvalResult:
    """Return the metric after the last round in the hub's form."""
    metric, source = facts.run.metric, facts.info.experiment.data.source
    return EvalResult(
        task_type=facts.task.pipeline or facts.task.name,
        task_name=facts.task.name,
        dataset_type=source,
        dataset_name=source,
        dataset_split=facts.split,
        metric_type=metric.name,
        metric_name=f"{metric.title}, last round",
        metric_value=last,
    )
