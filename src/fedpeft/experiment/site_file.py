"""`site.toml`: the name, data and permissions of a site. Strict; all problems at once.

The site's owner writes it; no server can change or read it. Paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo

from fedpeft.core.errors import ConfigError
from fedpeft.core.text import home, is_loopback, nearest
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.experiment.fields import Above, Port, Positive, Separator, Table
from fedpeft.experiment.privacy import PRIVACY_MODES, ModeName
from fedpeft.experiment.schema import explain, listed


def _absolute(value: str, info: ValidationInfo) -> str:
    """Make a path absolute; it is relative to the folder of the site's file."""
    return str((info.context or Path()) / home(value))


def _source(value: str, info: ValidationInfo) -> str:
    if value in BUNDLED_DATASETS:
        return value
    path = Path(_absolute(value, info))
    return str(path) if path.exists() or path.suffix or "/" in value else value


def _key(value: str, info: ValidationInfo) -> str:
    return value if value.startswith("ssh-") else _absolute(value, info)


Place = Annotated[str, AfterValidator(_absolute)]


class SiteDataConfig(Table):
    """`[data]`: the site's own examples. Only this file can name them."""

    source: Annotated[str, AfterValidator(_source)]
    """A local file or folder, or a bundled name."""
    train_split: str | None = None
    """Name of the split; by default `train`, or the only one."""
    image: str | None = None
    """Column of the images; found by its name."""
    text: str | None = None
    """Column of the texts; found by its name."""
    video: str | None = None
    """Column of the clips; found by its name."""
    label: str | None = None
    """Column of the labels; found by its name."""
    messages: str | None = None
    """Column of conversations, each a list of messages; found by its name."""
    prompt: str | None = None
    """Column of what is asked; found by its name."""
    input: str | None = None
    """Column of what a prompt is about, put below it; found by its name."""
    completion: str | None = None
    """Column of the answers; found by its name."""
    chat_template: Place | None = None
    """File of the chat template that a server may name besides `alpaca` and `none`: its own must
    be equal."""
    header: bool = True
    """Whether the first line of a `.csv` or `.tsv` names the columns; else they are `column_1`,
    `column_2` ..."""
    separator: Separator | None = None
    """Character between two cells of a `.csv` or `.tsv`; a comma in `.csv`, a tab in `.tsv`."""
    classes: list[str] = Field(default_factory=list)
    """All classes in the server's order, for a site whose files do not name them."""


class SiteModelConfig(Table):
    """`[model]`: the backbones that a server may use here."""

    allow: list[str] | None = None
    """Names of models that may be loaded; bundled ones and presets by default."""
    folders: dict[str, Place] = Field(default_factory=dict)
    """The server's name of a model -> a folder on this site."""


class SuperLinkConfig(Table):
    """`[superlink]`: the server, and how this site and the server authenticate each other."""

    address: str = "127.0.0.1:8000"
    """HOST:PORT of the SuperLink."""
    root_certificates: Place | None = None
    """PEM file of the authority that signed the server's certificate."""
    private_key: Place | None = None
    """This site's private key, whose public key is registered at the server."""
    trusted_keys: list[Annotated[str, AfterValidator(_key)]] = Field(default_factory=list)
    """Public keys that may sign app bundles: `ssh-ed25519 ...` lines, or files with one."""
    runtime_port: Port | None = None
    """Loopback port of the SuperNode's own interface; a free one by default."""


class AllowConfig(Table):
    """`[allow]`: limits on experiments."""

    methods: list[str] | None = None
    """Tuning methods; all by default."""
    max_rounds: Positive = 1000
    """Most rounds of an experiment, and most turns of a run, by the site's own count."""
    max_turns: Positive | None = None
    """Most turns over all runs and servers, by the site's own count; no limit by default."""
    max_epochs: Positive = 100
    """Most epochs of a turn."""
    max_steps: Positive = 10_000
    """Most steps of a turn; one of the two limits is enough."""
    max_message_bytes: Positive = 2_000_000_000
    """Largest message, either way."""
    metrics: list[str] = Field(["loss"])
    """Training figures that may be sent with a delta."""
    plugins: list[str] = Field(default_factory=list)
    """Names of plug-ins that an experiment may use here; none by default."""
    num_examples: bool = True
    """Whether the server may learn the number of examples."""


class SitePrivacyConfig(Table):
    """`[privacy]`: the privacy that this site requires of experiments."""

    modes: list[ModeName] = Field(["none", "central", "local", "example"])
    """Privacy modes in which this site takes part."""
    epsilon: Above | None = None
    """Most that all runs together may spend, for modes `local` and `example`."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Delta of the (epsilon, delta) guarantee."""
    reproducible_noise: bool = False
    """Allow noise that the server can reproduce, for tests."""


class WorkerConfig(Table):
    """`[worker]`: the process that holds backbone and data."""

    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    threads: Positive = 1
    """Number of threads of torch; 1 gives the same bits as the local engine."""
    seconds: Above = 3600.0
    """Longest turn that the app waits for."""
    resident: bool = True
    """False: model and data are loaded anew for each message."""
    prefix_memory: Annotated[int, Field(ge=0)] = 1024
    """MiB of memory for the output of frozen layers; 0 keeps none."""


class SiteConfig(Table):
    """A whole site file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of this client in the federation."""
    state: Place = Field("state", validate_default=True)
    """Private folder of client memories, socket and privacy budget."""
    data: SiteDataConfig
    model: SiteModelConfig = SiteModelConfig()
    superlink: SuperLinkConfig = SuperLinkConfig()
    allow: AllowConfig = AllowConfig()
    privacy: SitePrivacyConfig = SitePrivacyConfig()
    worker: WorkerConfig = WorkerConfig()


def read_site(file: Path) -> SiteConfig:
    """Read a site file; its paths become absolute.

    Raises:
      ConfigError: listing every problem that the file alone shows.
    """
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as TOML: {error}") from error
    try:
        return SiteConfig.model_validate(table, context=file.absolute().parent)
    except ValidationError as error:
        lines = [problem.line for problem in explain(error, SiteConfig)]
        raise ConfigError(listed(str(file), lines)) from error


def site_problems(site: SiteConfig, *, part: str = "all", unprotected: bool = False) -> list[str]:
    """Return every problem with a site file on this machine: files, methods, addresses.

    Args:
      site: with absolute paths.
      part: `all`, `worker` or `supernode`: only what that process needs is checked.
      unprotected: the owner accepts a network connection without TLS and authentication.
    """
    own = list(_missing(_own_files(site))) if part != "supernode" else []
    link = [*_missing(_link_files(site)), *_open_network(site, unprotected)]
    return [*own, *(link if part != "worker" else []), *_contradictions(site)]


def _missing(named: Mapping[str, str | None]) -> Iterator[str]:
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            yield f"{key}: there is no {path}"


def _own_files(site: SiteConfig) -> dict[str, str | None]:
    source = site.data.source if Path(site.data.source).is_absolute() else None
    folders = {f"model.folders.{name!r}": folder for name, folder in site.model.folders.items()}
    return {"data.source": source, **folders}


def _link_files(site: SiteConfig) -> dict[str, str | None]:
    link = site.superlink
    return {
        "superlink.root_certificates": link.root_certificates,
        "superlink.private_key": link.private_key,
        **{
            f"superlink.trusted_keys[{i}]": key
            for i, key in enumerate(link.trusted_keys)
            if not key.startswith("ssh-")
        },
    }


def _contradictions(site: SiteConfig) -> Iterator[str]:
    from fedpeft.tuning.methods import METHODS

    for method in site.allow.methods or []:
        if method not in METHODS:
            yield f"allow.methods: no such method {method!r}; {nearest(method, METHODS)}"
    own = [name for name, mode in PRIVACY_MODES.items() if mode.noise_by == "client"]
    bare = sorted(set(site.privacy.modes) - set(own))
    if site.privacy.epsilon is not None and bare:
        yield (
            f"privacy.epsilon: found {site.privacy.epsilon:g} with modes {', '.join(bare)}, whose "
            f"noise is not this site's; set modes = {own}, or leave epsilon out"
        )
    host, _, port = site.superlink.address.rpartition(":")
    if not host or not port.isdigit():
        yield f"superlink.address: found {site.superlink.address!r}; allowed is host:port"


def _open_network(site: SiteConfig, unprotected: bool) -> Iterator[str]:
    """Yield what is missing on a network without TLS and authentication, unless it is accepted."""
    link = site.superlink
    if unprotected or is_loopback(link.address):
        return
    for key, value, risk in (
        ("root_certificates", link.root_certificates, "anyone on the way can read and change it"),
        ("private_key", link.private_key, "the server cannot tell this site from another"),
        ("trusted_keys", link.trusted_keys or None, "the server could run any code here"),
    ):
        if value is None:
            yield (
                f"superlink.{key}: not set, and {link.address} is not this machine: {risk}. Set "
                "it, or say --i-accept-an-unprotected-network"
            )
