"""`site.toml`: what a site is, what it has and what it allows. Strict; all problems at once.

The site's owner writes it; no server can change or read it. Paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo

from fedpeft.core.errors import ConfigError
from fedpeft.core.words import is_loopback, nearest
from fedpeft.experiment.fields import STRICT, Above, Port, Positive
from fedpeft.experiment.privacy import PRIVACY_MODES, ModeName
from fedpeft.experiment.schema import explain, listed

__all__ = [
    "AllowConfig",
    "SiteConfig",
    "SiteDataConfig",
    "SiteModelConfig",
    "SitePrivacyConfig",
    "SuperLinkConfig",
    "WorkerConfig",
    "read_site",
    "site_problems",
]


def _absolute(value: str, info: ValidationInfo) -> str:
    """Make a path absolute that is relative to the folder of the site's file."""
    return str((info.context or Path()) / Path(value).expanduser())


def _source(value: str, info: ValidationInfo) -> str:
    path = Path(_absolute(value, info))
    return str(path) if path.exists() or path.suffix or "/" in value else value


def _key(value: str, info: ValidationInfo) -> str:
    return value if value.startswith("ssh-") else _absolute(value, info)


Place = Annotated[str, AfterValidator(_absolute)]


class SiteDataConfig(BaseModel):
    """`[data]`: the site's own examples. Only this file can name them."""

    model_config = STRICT
    source: Annotated[str, AfterValidator(_source)] = Field(
        description="a local file or folder, or a bundled name"
    )
    train_split: str | None = Field(None, description="`train` by default; a lone split is taken")
    image: str | None = Field(None, description="column of the images; found by its name")
    text: str | None = Field(None, description="column of the texts; found by its name")
    video: str | None = Field(None, description="column of the clips; found by its name")
    label: str | None = Field(None, description="column of the labels; found by its name")
    classes: list[str] = Field(
        default_factory=list,
        description="all classes in the server's order, where this site's files do not hold them",
    )


class SiteModelConfig(BaseModel):
    """`[model]`: which backbones a server may ask for."""

    model_config = STRICT
    allow: list[str] | None = Field(
        None, description="names that may be loaded; bundled ones and presets by default"
    )
    folders: dict[str, Place] = Field(
        default_factory=dict, description="the server's name of a model -> a folder of this site"
    )


class SuperLinkConfig(BaseModel):
    """`[superlink]`: the server, and how this site knows it and is known by it."""

    model_config = STRICT
    address: str = Field("127.0.0.1:8000", description="host:port of the SuperLink")
    root_certificates: Place | None = Field(
        None, description="PEM file that vouches for the server"
    )
    private_key: Place | None = Field(None, description="this site's key, registered at the server")
    trusted_keys: list[Annotated[str, AfterValidator(_key)]] = Field(
        default_factory=list,
        description="`ssh-ed25519 ...` lines, or files with one: who may sign app bundles",
    )
    runtime_port: Port | None = Field(
        None, description="of the SuperNode's own interface on loopback; a free one by default"
    )


class AllowConfig(BaseModel):
    """`[allow]`: what an experiment may be."""

    model_config = STRICT
    methods: list[str] | None = Field(None, description="tuning methods; all by default")
    max_rounds: Positive = Field(1000, description="of an experiment")
    max_epochs: Positive = Field(100, description="of a turn")
    max_message_bytes: Positive = Field(2_000_000_000, description="of a message, either way")
    metrics: list[str] = Field(["loss"], description="figures of training that may go with a delta")
    plugins: list[str] = Field(
        default_factory=list,
        description="names of installed packages that an experiment may use here; none by default",
    )
    num_examples: bool = Field(
        True, description="whether the server may know how many examples there are"
    )


class SitePrivacyConfig(BaseModel):
    """`[privacy]`: what this site demands of an experiment's privacy."""

    model_config = STRICT
    modes: list[ModeName] = Field(
        ["none", "central", "local", "example"], description="modes in which it takes part"
    )
    epsilon: Above | None = Field(
        None, description="most that all runs together may spend; for modes local and example"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="of (epsilon, delta)")
    reproducible_noise: bool = Field(False, description="allow noise that the server knows: tests")


class WorkerConfig(BaseModel):
    """`[worker]`: the process that holds backbone and data."""

    model_config = STRICT
    device: str = Field("cpu", description="`cpu`, `cuda` or `cuda:N`")
    threads: Positive = Field(1, description="of torch; 1 gives the local engine's bits")
    seconds: Above = Field(3600.0, description="longest turn that the app waits for")
    resident: bool = Field(True, description="false: each message loads everything anew")
    prefix_memory: Annotated[int, Field(ge=0)] = Field(
        1024, description="MiB of memory for the output of frozen layers; at 0 none is kept"
    )


class SiteConfig(BaseModel):
    """A whole site file."""

    model_config = STRICT
    name: str = Field(
        description="of this client in the federation", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
    )
    state: Place = Field(
        "state", description="folder of memories, socket and budget; private", validate_default=True
    )
    data: SiteDataConfig
    model: SiteModelConfig = Field(default_factory=SiteModelConfig)
    superlink: SuperLinkConfig = Field(default_factory=SuperLinkConfig)
    allow: AllowConfig = Field(default_factory=AllowConfig)
    privacy: SitePrivacyConfig = Field(default_factory=SitePrivacyConfig)
    worker: WorkerConfig = Field(default_factory=WorkerConfig)


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
    """Return every problem that this machine shows: files, methods, addresses.

    Args:
      site: with absolute paths.
      part: `all`, `worker` or `supernode`: only what that process needs has to be there.
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
    """Refuse a network without TLS and authentication, unless told otherwise in plain words."""
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
