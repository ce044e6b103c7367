"""The experiment file: strict TOML, every key optional, every problem reported at once.

    bundled quickstart or FILE.toml  <-  --set KEY=VALUE  <-  defaults   ->   Experiment (frozen)

Only `fedpeft.experiment` sees these classes; everything else takes plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fedpeft.experiment.engines import EngineConfig
from fedpeft.experiment.fields import STRICT, Above, Fraction, NotNegative, Options, Positive
from fedpeft.experiment.privacy import PrivacyConfig

__all__ = [
    "BufferedConfig",
    "ClientConfig",
    "DataConfig",
    "Experiment",
    "FederationConfig",
    "ModelConfig",
    "Normalization",
    "ObjectConfig",
    "PartitionConfig",
    "RunConfig",
    "StabilityConfig",
    "TransformsConfig",
    "TuningConfig",
    "WireConfig",
    "num_clients",
    "num_together",
]


class ModelConfig(BaseModel):
    """`[model]`: the pretrained model."""

    model_config = STRICT
    name: str = Field(
        "vit-glyphs-8", description="hub id, local folder, bundled name or preset:NAME"
    )
    config: str | None = Field(None, description="the architecture, when the hub cannot be reached")
    task: str | None = Field(
        None,
        description=(
            "such as `image-classification`, see `fedpeft list models`; found from the model where "
            "it is not ambiguous"
        ),
    )
    num_labels: Positive | None = Field(None, description="classes; found from the data by `run`")
    revision: str | None = Field(None, description="of a hub model: branch, tag or commit")


class TuningConfig(BaseModel):
    """`[tuning]`: what is trained."""

    model_config = STRICT
    method: str = Field("bias", description="see `fedpeft list methods`")
    head_init: Literal["normal", "paper"] = Field(
        "normal", description="N(0, 0.02) and zero bias, or U(±1/√d) as the paper's code"
    )
    blocks: list[int] | None = Field(
        None,
        description="[first, last]: tune these blocks only, counted from 0, both included",
        min_length=2,
        max_length=2,
    )
    options: Options = Field(default_factory=dict, description="options of the method")


class Normalization(BaseModel):
    """`normalize = { mean = [...], std = [...] }`."""

    model_config = STRICT
    mean: list[float] = Field(min_length=1)
    std: list[Above] = Field(min_length=1)


class TransformsConfig(BaseModel):
    """`[data.transforms]`: images only; crop and flip in training only."""

    model_config = STRICT
    normalize: Literal["model", "dataset"] | Normalization = Field(
        "model", description="`model`, `dataset` or a mean and a std a channel"
    )
    resize: Positive | None = Field(None, description="side in pixels; the model's own by default")
    random_crop: Annotated[int, Field(ge=0)] | None = Field(
        None, description="pixels added on every side before a random crop; off by default"
    )
    flip: bool = Field(False, description="mirror half of the images")
    frame_offset: bool = Field(
        False, description="clips, training: draw where in its stretch each frame is taken"
    )


class PartitionConfig(BaseModel):
    """`[data.partition]`: which client holds which examples."""

    model_config = STRICT
    scheme: str = Field("dirichlet", description="see `fedpeft list partitions`")
    clients: Positive | None = Field(
        None, description="number of clients, 64 by default; natural: at most this many"
    )
    alpha: Above = Field(0.1, description="Dirichlet concentration; smaller is more skewed")
    min_examples: Positive | None = Field(
        None, description="smallest client; 1 with bundled data, else 10"
    )
    classes_per_client: Positive = Field(2, description="pathological: label shards a client")
    examples_per_client: Positive = Field(20, description="drawn: examples of each client")
    options: Options = Field(default_factory=dict, description="options of a plug-in's partition")


class DataConfig(BaseModel):
    """`[data]`: where the examples are."""

    model_config = STRICT
    source: str = Field("digits", description="hub id, local folder or file, or bundled name")
    subset: str | None = Field(None, description="of a hub data set: its configuration")
    revision: str | None = Field(None, description="of a hub data set")
    train_split: str | None = Field(None, description="`train` by default")
    test_split: str | None = Field(
        None,
        description="`test` by default, else a validation split, else 20 % of the training split",
    )
    image: str | None = Field(None, description="column of the images; found by its name")
    text: str | None = Field(None, description="column of the texts; found by its name")
    video: str | None = Field(None, description="column of the clips; found by its name")
    label: str | None = Field(None, description="column of the labels; found by its name")
    client: str | None = Field(None, description="column of natural clients; found by its name")
    max_length: Positive | None = Field(None, description="longest text in tokens")
    num_examples: Positive | None = Field(None, description="for `plan` and `check`: training size")
    budget: Positive | None = Field(None, description="few-shot: draw this many examples first")
    fidelity: Literal["paper"] | None = Field(None, description="repeat the paper's code's quirks")
    evaluate_on: Literal["test", "validation"] = Field(
        "test", description="`validation` for searches of hyperparameters"
    )
    transforms: TransformsConfig = Field(default_factory=TransformsConfig)
    partition: PartitionConfig = Field(default_factory=PartitionConfig)


class BufferedConfig(BaseModel):
    """`[federation.buffered]`: options of `federation.mode = "buffered"`."""

    model_config = STRICT
    size: Positive | None = Field(
        None, description="replies that make a round; clients_per_round by default"
    )
    concurrency: Positive | None = Field(
        None, description="turns under way at once; clients_per_round by default"
    )
    exponent: NotNegative = Field(0.5, description="a reply s rounds old counts (1 + s)**-exponent")
    max_staleness: Positive | None = Field(None, description="replies older than this are not used")


class FederationConfig(BaseModel):
    """`[federation]`: the server."""

    model_config = STRICT
    algorithm: str = Field("fedavg", description="see `fedpeft list algorithms`")
    mode: Literal["synchronous", "buffered"] = Field(
        "synchronous", description="`buffered`: asynchronous, on the simulated clock"
    )
    buffered: BufferedConfig = Field(default_factory=BufferedConfig)
    rounds: Positive = 50
    clients_per_round: Positive = 8
    sampling: str = Field(
        "fixed",
        description="how cohorts are drawn, see `fedpeft list samplers`; poisson: each client by a "
        "secret coin, for privacy.mode = central",
    )
    sampling_options: Options = Field(default_factory=dict, description="options of the sampler")
    min_replies: Positive = Field(1, description="fewer usable replies end the run, exit code 3")
    eval_every: Positive = Field(1, description="evaluate every so many rounds, and the last")
    evaluate_clients: bool = Field(False, description="also report accuracy client by client")
    options: Options = Field(default_factory=dict, description="options of the algorithm")


class StabilityConfig(BaseModel):
    """`[stability]`: the world that clients live in; the table switches the simulated clock on."""

    model_config = STRICT
    dropout: Fraction = Field(0.0, description="probability that a client's turn breaks off")
    stragglers: Literal["none", "lognormal", "pareto"] = Field(
        "none", description="heavy-tailed slowdown of single turns"
    )
    straggler_shape: Above = Field(
        1.0, description="lognormal: deviation of the logarithm; pareto: tail index"
    )
    deadline: Above | None = Field(None, description="longest turn waited for, simulated seconds")
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        1.0, description="ask so many times clients_per_round, use the first that answer"
    )
    speed_spread: NotNegative = Field(
        0.0, description="deviation of the logarithm of clients' computing speeds; 0: equal"
    )
    link_spread: NotNegative = Field(0.0, description="the same of clients' links")
    examples_per_second: Above = Field(100.0, description="that a client of speed 1 trains on")
    bytes_down_per_second: Above = Field(1_250_000.0, description="of a link of speed 1")
    bytes_up_per_second: Above = Field(250_000.0, description="of a link of speed 1")
    trace: str | None = Field(
        None, description="when clients are available: a csv or jsonl file, or `phones`"
    )
    trace_period: Above | None = Field(
        None, description="the trace's file repeats after so many simulated seconds"
    )
    trace_sha256: str | None = Field(
        None, description="of the trace's file; filled in by a run", pattern="^[0-9a-f]{64}$"
    )
    choose_from: Literal["all", "available"] = Field(
        "all", description="whom synchronous cohorts are drawn from; buffered: who is available"
    )


class ClientConfig(BaseModel):
    """`[client]`: local training."""

    model_config = STRICT
    epochs: Positive = 10
    batch_size: Positive = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Above | dict[str, Above] | None = Field(
        None, description="a number, or a table by tuning method"
    )
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 1e-4
    prox_mu: NotNegative | None = Field(
        None, description="weight of a proximal term; the algorithm's by default"
    )
    prefix_cache: Literal["auto", "memory", "disk", "off"] = Field(
        "auto",
        description="the output of the frozen layers below all that trains is computed once an "
        "example; auto: kept in memory if all fits, else on disk",
    )
    prefix_memory: Positive = Field(1024, description="MiB of memory for it")
    prefix_disk: Positive = Field(8192, description="MiB of the cache folder for it")
    prefix_views: Positive | None = Field(
        None, description="with augmentation: keep so many views of each example; off by default"
    )


class WireConfig(BaseModel):
    """`[wire]`: stages between clients and server, each `{ name = "...", option = value }`."""

    model_config = STRICT
    up: list[Options] = Field(default_factory=list, description="from client to server, in order")
    down: list[Options] = Field(default_factory=list, description="from server to client, in order")


class RunConfig(BaseModel):
    """`[run]`: what a run leaves in its folder."""

    model_config = STRICT
    keep_deltas: bool = Field(False, description="keep each round's delta, for `fedpeft theorem`")
    callbacks: list[Options] = Field(
        default_factory=list,
        description='what else happens around rounds: `{ name = "...", option = value }` each, '
        "see `fedpeft list callbacks`",
    )


class ObjectConfig(BaseModel):
    """`[objects."KEY"]`: where something comes from that is no part of this package.

    A run writes these tables; they are no keys to set.
    """

    model_config = STRICT
    name: str = Field(description="`package.module:name`")
    package: str = Field("", description="the installed package whose plug-in it is")
    version: str = Field("", description="of the package")
    sha256: str = Field("", description="of the source file")
    resumes: str = Field("", description="what an interrupted run needs to go on")


class Experiment(BaseModel):
    """A whole experiment file."""

    model_config = STRICT
    name: str = Field(
        "fedpeft",
        description="of the run, for folders and reports",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        1, description="the root of everything random: partition, cohorts, head, training"
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    tuning: TuningConfig = Field(default_factory=TuningConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    stability: StabilityConfig | None = None
    client: ClientConfig = Field(default_factory=ClientConfig)
    wire: WireConfig = Field(default_factory=WireConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    run: RunConfig = Field(default_factory=RunConfig)
    objects: dict[str, ObjectConfig] = Field(
        default_factory=dict, description="written by a run: objects and plug-ins that it used"
    )
    sweep: list[Mapping[str, Any]] = Field(
        default_factory=list, description="`[[sweep]]`: rows of overrides, for `fedpeft sweep`"
    )


_CLIENTS = 64


def num_clients(experiment: Experiment) -> int | None:
    """Return how many clients there will be; None where only the data can tell."""
    partition = experiment.data.partition
    return None if partition.scheme == "natural" else partition.clients or _CLIENTS


def num_together(experiment: Experiment) -> int:
    """Return how many clients share a pass in an experiment for which that is decided."""
    found = experiment.engine.clients_per_pass
    return found if isinstance(found, int) else 1
