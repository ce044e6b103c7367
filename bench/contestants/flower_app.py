"""Flower with an ordinary Hugging Face `peft` client, as its users and its examples write it.

    client   per message: from_pretrained, get_peft_model, set state dict, train, state dict back
    server   FedAvg over array records; the whole test set is scored after each round
    keep     the same client, but a process keeps its model between messages

One thing differs from an ordinary app: the cohort is dictated, so that all contestants meet the
same clients. A message names its client; FedAvg samples as many nodes as ever.

Usage: python -m bench.contestants.flower_app FOLDER [--keep] OUT.json
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from bench.contestants.work import (
    Work,
    accuracy,
    delta_of,
    make_model,
    read_work,
    save_delta,
    train,
)

__all__ = ["client_app", "main"]

client_app = ClientApp()


@functools.lru_cache(maxsize=1)
def _work(folder: str) -> Work:
    """Read the data once a process, as the examples' cached data set."""
    return read_work(Path(folder))


@functools.lru_cache(maxsize=1)
def _kept_model(folder: str) -> nn.Module:
    return make_model(_work(folder))


@client_app.train()  # type: ignore[untyped-decorator]  # flwr is not typed for mypy here
def train_client(message: Message, context: Context) -> Message:
    """Train the client that the message names."""
    config = message.content["config"]
    folder, client = str(config["folder"]), str(config["client"])
    work = _work(folder)
    model = _kept_model(folder) if config["keep"] else make_model(work)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    loss = train(work, model, int(config["server-round"]), client)
    metrics = {"train_loss": loss, "num-examples": len(work.plan["clients"][client])}
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


class DictatedCohort(FedAvg):  # type: ignore[misc]  # flwr is not typed for mypy here
    """FedAvg whose messages name the client that the work's plan has for the round."""

    def __init__(self, work: Work, **options: float) -> None:
        super().__init__(**options)
        self.work = work

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return FedAvg's messages, each with a client's name."""
        messages = super().configure_train(server_round, arrays, config, grid)
        cohort = self.work.cohort(server_round)
        return [_naming(m, arrays, config, n) for m, n in zip(messages, cohort, strict=True)]


def _naming(message: Message, arrays: ArrayRecord, config: ConfigRecord, name: str) -> Message:
    named = ConfigRecord({**dict(config), "client": name})
    return Message(
        content=RecordDict({"arrays": arrays, "config": named}),
        message_type=message.metadata.message_type,
        dst_node_id=message.metadata.dst_node_id,
    )


def _server(work: Work, out: Path, *, keep: bool) -> ServerApp:
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]  # flwr is not typed for mypy here
    def serve(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < len(work.plan["clients"]):
            time.sleep(0.1)
        model = make_model(work)
        stamps, scores = [time.perf_counter()], []

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number == 0 or (number % work.plan["eval_every"] and number < work.plan["rounds"]):
                return None
            set_peft_model_state_dict(model, arrays.to_torch_state_dict())
            scores.append(accuracy(work, model))
            stamps.append(time.perf_counter())
            return MetricRecord({"accuracy": scores[-1]})

        cohort = len(work.cohort(1))
        strategy = DictatedCohort(
            work,
            fraction_train=cohort / len(work.plan["clients"]),
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=cohort,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
            num_rounds=work.plan["rounds"],
            train_config=ConfigRecord({"folder": str(work.folder), "keep": keep}),
            evaluate_fn=evaluate,
        )
        save_delta(delta_of(model), out.with_suffix(".safetensors"))
        seconds = [after - before for before, after in itertools.pairwise(stamps)]
        found = {"accuracy": scores[-1], "round_seconds": seconds, "rounds": sum(seconds)}
        out.write_text(json.dumps(found), "utf-8")

    return app


def main() -> None:
    """Run the simulation over Ray, one core a client."""
    from flwr.simulation import run_simulation

    # Ray's workers import this module by its name, which `__main__` is not.
    from bench.contestants import flower_app as module

    work = read_work(Path(sys.argv[1]))
    cores = int(work.plan["cores"])
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        run_simulation(
            server_app=module._server(work, Path(sys.argv[-1]), keep="--keep" in sys.argv),
            client_app=module.client_app,
            num_supernodes=len(work.plan["clients"]),
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": cores,
                    "include_dashboard": False,
                    "log_to_driver": False,
                    "_temp_dir": folder,
                },
            },
        )


if __name__ == "__main__":
    main()
