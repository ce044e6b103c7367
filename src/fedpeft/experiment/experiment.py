"""The experiment file: strict TOML, every key optional, every problem reported at once.

    bundled quickstart or FILE.toml  <-  --set KEY=VALUE  <-  defaults   ->   Experiment (frozen)

Only `fedpeft.experiment` sees these classes; everything else takes plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from fedpeft.experiment.engines import EngineConfig
from fedpeft.experiment.fields import (
    Above,
    Fraction,
    NotNegative,
    Options,
    Positive,
    Separator,
    Table,
)
from fedpeft.experiment.privacy import PrivacyConfig
from fedpeft.models.pooling import Pooling


class ModelConfig(Table):
    """`[model]`: the pretrained model."""

    name: str = "vit-glyphs-8"
    """Hub id, local folder, bundled name or `preset:NAME`."""
    config: str | None = None
    """The architecture, for a model that is not on this machine while the hub cannot be reached."""
    task: str | None = None
    """What the model is tuned for, see `fedpeft list tasks`; found from the model where it is
    unambiguous."""
    num_labels: Positive | None = None
    """Number of classes; `run` takes it from the data."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    pooling: Pooling | None = None
    """The vector of a text that the classifier of an encoder reads: the `mean` of its tokens'
    states, that of its first token (`cls`), or what the model's `pooler` makes of it; by default
    what the model's class does."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """How linear layers and embeddings that do not train are stored; `auto`: as in the files.
    They compute in float32, or as `engine.precision` says."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Store linear layers that do not train in 8 or 4 bits; needs `pip install
    'fedpeft[quantized]'`."""


class TuningConfig(Table):
    """`[tuning]`: the parameters that are trained."""

    method: str = "bias"
    """The tuning method, see `fedpeft list methods`."""
    start: str | None = Field(None, alias="from")
    """Start from an adapter that exists instead of a new one: its folder or hub id (of `peft`, of a
    run, or an export). Method and options are the adapter's."""
    head_init: Literal["normal", "paper"] = "normal"
    """N(0, 0.02) and zero bias, or U(±1/√d) as in the paper's code."""
    blocks: list[int] | None = Field(None, min_length=2, max_length=2)
    """[first, last]: tune these blocks only, counted from 0, both included."""
    options: Options = Field(default_factory=dict)
    """Options of the method."""


class Normalization(Table):
    """`normalize = { mean = [...], std = [...] }`."""

    mean: list[float] = Field(min_length=1)
    """Mean of each channel."""
    std: list[Above] = Field(min_length=1)
    """Standard deviation of each channel."""


class TransformsConfig(Table):
    """`[data.transforms]`: images only; crop and flip in training only."""

    normalize: Literal["model", "dataset"] | Normalization = "model"
    """`model`, `dataset`, or a mean and a standard deviation for each channel."""
    resize: Positive | None = None
    """Side of the images in pixels; the model's own by default."""
    random_crop: Annotated[int, Field(ge=0)] | None = None
    """Pixels of padding on every side before a random crop; no crop by default."""
    flip: bool = False
    """Mirror half of the images."""
    frame_offset: bool = False
    """Clips, in training: draw at random which frame of each stretch is taken."""


class PartitionConfig(Table):
    """`[data.partition]`: the assignment of examples to clients."""

    scheme: str = "dirichlet"
    """The rule, see `fedpeft list partitions`."""
    clients: Positive | None = None
    """Number of clients, 64 by default; `natural`: at most this many."""
    alpha: Above = 0.1
    """Dirichlet concentration; smaller is more skewed."""
    min_examples: Positive | None = None
    """Fewest examples of a client; 1 with bundled data, else 10."""
    classes_per_client: Positive = 2
    """`pathological`: label shards of each client."""
    examples_per_client: Positive = 20
    """`drawn`: number of examples of each client."""
    options: Options = Field(default_factory=dict)
    """Options of a plug-in's partition."""


class DataConfig(Table):
    """`[data]`: the examples."""

    source: str = "digits"
    """Hub id, local folder or file, or bundled name."""
    subset: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    train_split: str | None = None
    """Name of the training split; `train` by default."""
    test_split: str | None = None
    """Name of the test split; by default `test`, else a validation split, else 20 % of the training
    split."""
    image: str | None = None
    """Column of the images; found by its name."""
    text: str | None = None
    """Column of the texts; found by its name."""
    video: str | None = None
    """Column of the clips; found by its name."""
    label: str | None = None
    """Column of the labels; found by its name."""
    client: str | None = None
    """Column that names the client of each example, for `natural`; found by its name."""
    messages: str | None = None
    """Language models: column of conversations, each a list of messages; found by its name."""
    prompt: str | None = None
    """Language models: column of what is asked, such as `instruction`; found by its name."""
    input: str | None = None
    """Language models: column of what a prompt is about, put below it; found by its name."""
    completion: str | None = None
    """Language models: column of the answers; found by its name."""
    header: bool = True
    """Whether the first line of a `.csv` or `.tsv` names the columns; else they are `column_1`,
    `column_2` ..."""
    separator: Separator | None = None
    """Character between two cells of a `.csv` or `.tsv`; a comma in `.csv`, a tab in `.tsv`."""
    max_length: Positive | None = None
    """Longest text in tokens; language models: at most 1,024 for conversations and 128 for
    documents, unless it is given."""
    chat_template: str | None = None
    """How conversations are written: a file with a Jinja template, `alpaca` or `none`; the
    tokenizer's own by default."""
    learn: Literal["answers", "last", "all"] | None = None
    """Tokens of a conversation that are learnt: all the assistant's turns (`answers`, the default),
    its `last` one, or `all`."""
    truncation: Literal["left", "right"] | None = None
    """Side on which a conversation that is longer than `max_length` is cut; the right by
    default."""
    packing: bool | None = None
    """Language models: whether short examples share rows of `max_length` tokens, each read as if it
    stood alone; by default a conversation has a row of its own, and a client's documents are joined
    and cut into blocks."""
    num_examples: Positive | None = None
    """Number of training examples, for `plan` and `check` without the data."""
    budget: Positive | None = None
    """Few-shot: draw this many examples first."""
    max_test: Positive | None = None
    """Evaluate on at most this many examples, drawn in proportion to the classes, the same for all
    seeds; all by default."""
    fidelity: Literal["paper"] | None = None
    """`paper` repeats the quirks of the paper's code."""
    evaluate_on: Literal["test", "validation"] = "test"
    """`validation` is for hyperparameter searches."""
    transforms: TransformsConfig = TransformsConfig()
    partition: PartitionConfig = PartitionConfig()


class BufferedConfig(Table):
    """`[federation.buffered]`: options of `federation.mode = "buffered"`."""

    size: Positive | None = None
    """Replies that make a round; `clients_per_round` by default."""
    concurrency: Positive | None = None
    """Turns under way at once; `clients_per_round` by default."""
    exponent: NotNegative = 0.5
    """A reply that is s rounds old has weight (1 + s)**-exponent."""
    max_staleness: Positive | None = None
    """Replies that are more rounds old than this are not used."""


class FederationConfig(Table):
    """`[federation]`: the server."""

    algorithm: str = "fedavg"
    """The federated algorithm, see `fedpeft list algorithms`."""
    mode: Literal["synchronous", "buffered"] = "synchronous"
    """`buffered`: asynchronous, on the simulated clock."""
    buffered: BufferedConfig = BufferedConfig()
    rounds: Positive = 50
    """Number of rounds."""
    clients_per_round: Positive = 8
    """Number of clients in a cohort."""
    sampling: str = "fixed"
    """How cohorts are drawn, see `fedpeft list samplers`; `poisson`: each client by a secret coin
    flip, for `privacy.mode = "central"`."""
    sampling_options: Options = Field(default_factory=dict)
    """Options of the sampler."""
    min_replies: Positive = 1
    """Fewer usable replies end the run with exit code 3."""
    max_examples: Positive = 1_000_000
    """Most examples that a site may announce; its replies weigh no more than it announced."""
    site_examples: dict[str, Positive] = Field(default_factory=dict)
    """Site -> the most examples that it may announce, instead of `max_examples`."""
    max_weight_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share of one client in a round's mean; at one n-th or less all weigh the same. Below
    1 a round's replies are held until all have come."""
    eval_first: bool = True
    """Also score the untuned model, before round 1; it is never the best."""
    eval_every: Positive = 1
    """Rounds between evaluations; the last round is always evaluated."""
    evaluate_clients: bool = False
    """Also report the headline metric of each client: `client_metrics`, on its own test rows, where
    the test set names clients; else `client_metrics_by_class`, the mean over the test set's classes
    in the client's proportions; null where the test set lacks one of them."""
    options: Options = Field(default_factory=dict)
    """Options of the algorithm."""


class StabilityConfig(Table):
    """`[stability]`: simulated failures and delays; the table switches on the simulated clock."""

    dropout: Fraction = 0.0
    """Probability that a client's turn breaks off."""
    stragglers: Literal["none", "lognormal", "pareto"] = "none"
    """Distribution of the slowdown of single turns; both choices are heavy-tailed."""
    straggler_shape: Above = 1.0
    """`lognormal`: standard deviation of the logarithm; `pareto`: tail index."""
    deadline: Above | None = None
    """Longest turn that the server waits for, in simulated seconds."""
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Request this many times `clients_per_round` turns and use the first replies."""
    speed_spread: NotNegative = 0.0
    """Standard deviation of the logarithm of the clients' computing speeds; 0: all are equal."""
    link_spread: NotNegative = 0.0
    """Standard deviation of the logarithm of the clients' link speeds; 0: all are equal."""
    examples_per_second: Above = 100.0
    """Training examples a second of a client of speed 1."""
    bytes_down_per_second: Above = 1_250_000.0
    """Download rate of a link of speed 1."""
    bytes_up_per_second: Above = 250_000.0
    """Upload rate of a link of speed 1."""
    trace: str | None = None
    """When clients are available: a csv or jsonl file, or `phones`."""
    trace_period: Above | None = None
    """Simulated seconds after which the trace of a file repeats."""
    trace_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the trace's file; a run fills it in."""
    choose_from: Literal["all", "available"] = "all"
    """Clients that synchronous cohorts are drawn from; buffered rounds always draw from available
    ones."""


class ClientConfig(Table):
    """`[client]`: local training."""

    epochs: Positive | None = None
    """Local epochs of a turn; 10 by default, or as many as `max_steps` takes."""
    max_steps: Positive | None = None
    """Steps of the optimiser in a turn, whatever the client holds; with `epochs` the turn ends with
    whichever comes first. No limit by default."""
    batch_size: Positive = 64
    """Examples in a local batch."""
    accumulation: Positive = 1
    """Batches whose gradients make one step, the mean over all their examples: as a batch so many
    times as large, in the memory of one."""
    by_length: bool = False
    """Put texts of similar length into a batch, to pad less; the order stays random otherwise."""
    optimizer: Literal["sgd", "adamw", "adamw_8bit", "adafactor"] = "sgd"
    """The local optimiser; `adamw_8bit` needs `pip install 'fedpeft[quantized]'`."""
    lr: Above | dict[str, Above] | None = None
    """Local learning rate: a number, or a table by tuning method."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate over the steps of a turn, as in `transformers`."""
    warmup: NotNegative = 0
    """Linear rise of the rate at the beginning of a turn: below 1 a share of its steps, else a
    number of steps."""
    round_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate over the rounds; multiplied with that of the turn."""
    round_warmup: NotNegative = 0
    """Linear rise of the rate over the first rounds: below 1 a share of them, else their number."""
    round_final: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor on the rate in the last round, for `round_schedule` `linear` and `cosine`."""
    gradient_clip: Above | None = None
    """Largest L2 norm of a step's gradient; no limit by default. Not with noised gradients."""
    momentum: Fraction = 0.9
    """Momentum of `sgd`."""
    nesterov: bool = True
    """Use Nesterov momentum in `sgd`."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of the local optimiser."""
    prox_mu: NotNegative | None = None
    """Weight of the proximal term; the algorithm's by default."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of a model's blocks, and run each block again in the backward pass: less
    memory, about a third more time, the same result."""
    prefix_cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Where the output of the frozen layers below all that trains is kept, so that it is computed
    once for each example; `auto`: in memory if all of it fits, else on disk."""
    prefix_memory: Positive = 1024
    """MiB of memory for these outputs."""
    prefix_disk: Positive = 8192
    """MiB of the cache folder for these outputs."""
    prefix_views: Positive | None = None
    """With augmentation: keep this many views of each example; none by default."""


class WireConfig(Table):
    """`[wire]`: stages between clients and server, each `{ name = "...", option = value }`."""

    up: list[Options] = Field(default_factory=list)
    """Stages from client to server, in order."""
    down: list[Options] = Field(default_factory=list)
    """Stages from server to client, in order."""


class AnswersConfig(Table):
    """`[answers]`: language models answer questions before round 1 and at the end."""

    num_examples: Annotated[int, Field(ge=0)] = 20
    """Test examples whose last answer is generated, spread over the clients of the test set."""
    max_new_tokens: Positive = 128
    """Longest generated answer, in tokens."""
    scores: list[Options] = Field(default_factory=lambda: [{"name": "exact_match"}])
    """How answers are compared with those of the data, `{ name = "...", option = value }` each, see
    `fedpeft list scores`."""
    choices: str | None = None
    """A jsonl or parquet file of multiple choice: `question`, `choices`, `answer`."""


class RunConfig(Table):
    """`[run]`: the content of the run folder, and callbacks."""

    keep_deltas: bool = False
    """Keep each round's delta, for `fedpeft theorem`."""
    callbacks: list[Options] = Field(default_factory=list)
    """Functions to call around rounds: `{ name = "...", option = value }` each, see `fedpeft list
    callbacks`."""


class ObjectConfig(Table):
    """`[objects."KEY"]`: the origin of an object from outside this package.

    A run writes these tables; they are not to be set by hand.
    """

    name: str
    """`package.module:name`."""
    package: str = ""
    """The installed package that provides the plug-in."""
    version: str = ""
    """Version of the package."""
    sha256: str = ""
    """Digest of the source file."""
    resumes: str = ""
    """What an interrupted run needs to be resumed."""


class Experiment(Table):
    """A whole experiment file."""

    name: str = Field("fedpeft", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run, for folders and reports."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Root of all random draws: partition, cohorts, head, training."""
    model: ModelConfig = ModelConfig()
    tuning: TuningConfig = TuningConfig()
    data: DataConfig = DataConfig()
    federation: FederationConfig = FederationConfig()
    stability: StabilityConfig | None = None
    client: ClientConfig = ClientConfig()
    wire: WireConfig = WireConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    answers: AnswersConfig | None = None
    engine: EngineConfig = EngineConfig()
    run: RunConfig = RunConfig()
    objects: dict[str, ObjectConfig] = Field(default_factory=dict)
    """Objects and plug-ins that a run used; the run writes this table."""
    sweep: list[Mapping[str, Any]] = Field(default_factory=list)
    """`[[sweep]]`: rows of overrides, for `fedpeft sweep`."""


_CLIENTS = 64


def num_clients(experiment: Experiment) -> int | None:
    """Return the number of clients; None where it follows from the data."""
    partition = experiment.data.partition
    return None if partition.scheme == "natural" else partition.clients or _CLIENTS


def num_together(experiment: Experiment) -> int:
    """Return how many clients share a pass in a resolved experiment."""
    found = experiment.engine.clients_per_pass
    return found if isinstance(found, int) else 1
