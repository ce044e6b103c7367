"""`node`: runs the worker, the SuperNode, or both, until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.cli.printing import say
from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.core.text import is_loopback
from fedpeft.experiment.schema import listed
from fedpeft.experiment.site_file import SiteConfig, read_site, site_problems
from fedpeft.federation.certificates import link_problems
from fedpeft.federation.processes import Child, follow
from fedpeft.federation.reach import Unreached, reach
from fedpeft.federation.resident import SECONDS, SITE, SOCKET, serve
from fedpeft.federation.supernode import NodeSettings, supernode, trusted_entities
from fedpeft.runs.files import write_text

logger = logging.getLogger(__name__)

_PARTS = ("all", "worker", "supernode")
_PARENT = "FEDPEFT_NODE_PROCESS"


def check_command(file: Path, part: str, *, unprotected: bool) -> int:
    """Print every problem of a site file, or else a summary of the site; return the exit code."""
    _check_part(part)
    site = read_site(file)
    problems = site_problems(site, part=part, unprotected=unprotected)
    problems += [] if problems or part == "supernode" else _data_problems(site)
    link = _Link() if part == "worker" else _link(site)
    unreached = link.unreached
    problems += [*link.problems, *([unreached.reason] if unreached else [])]
    for problem in problems:
        say(problem, err=True)
    if unreached and not unreached.lasting and len(problems) == 1:
        return EngineError.exit_code
    if problems:
        return ConfigError.exit_code
    for line in _summary_lines(site):
        say(line)
    return 0


def node_command(file: Path, part: str, *, unprotected: bool) -> None:
    """Run a site until Ctrl-C or SIGTERM.

    Raises:
      ConfigError: listing every problem of the file.
      EngineError: if a process cannot be kept running.
    """
    _check_part(part)
    site = read_site(file)
    problems = site_problems(site, part=part, unprotected=unprotected)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    if part != "worker":
        link = _link(site)
        problems += link.problems
        if link.unreached and link.unreached.lasting:
            problems.append(link.unreached.reason)
        elif link.unreached:
            logger.warning("%s. Trying again until it answers", link.unreached.reason)
    if problems:
        raise ConfigError(listed(str(file), problems))
    state = Path(site.state)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if part == "worker":
        _work(site)
        return
    children = [_supernode(file, site)]
    if part == "all" and site.worker.resident:
        children.insert(0, _worker(file, unprotected=unprotected))
    follow(children, goes_on=until_signal())


@dataclass(frozen=True)
class _Link:
    """What is wrong between a site and its server: with files, and with reaching it."""

    problems: Sequence[str] = ()
    unreached: Unreached | None = None


def _link(site: SiteConfig) -> _Link:
    """Look at keys and certificates; call the server if they are right."""
    problems = link_problems(site)
    if problems:
        return _Link(problems)
    return _Link((), reach(site.superlink.address, site.superlink.root_certificates))


def _check_part(part: str) -> None:
    if part not in _PARTS:
        raise ConfigError(f"--part: found {part!r}; allowed are {', '.join(_PARTS)}")


def _work(site: SiteConfig) -> None:
    """Run the worker in this process."""
    from fedpeft.federation.site_setup import make_site

    goes_on, parent = until_signal(), os.environ.get(_PARENT)
    serve(
        _socket(site),
        make_site(site).take,
        max_bytes=site.allow.max_message_bytes,
        goes_on=lambda: goes_on() and (parent is None or os.getppid() == int(parent)),
    )


def _worker(file: Path, *, unprotected: bool) -> Child:
    command = [sys.executable, "-m", "fedpeft", "node", str(file), "--part", "worker"]
    command += ["--i-accept-an-unprotected-network"] if unprotected else []
    return Child("worker", command, {_PARENT: str(os.getpid()), "OMP_WAIT_POLICY": "PASSIVE"})


def _supernode(file: Path, site: SiteConfig) -> Child:
    link, state = site.superlink, Path(site.state)
    trusted = state / "trusted.yaml" if link.trusted_keys else None
    if trusted is not None:
        write_text(trusted, trusted_entities(link.trusted_keys))
    elif is_loopback(link.address):
        say("note: no superlink.trusted_keys: any bundle of the server is run", err=True)
    config: dict[str, str | float] = {"site": site.name, SECONDS: site.worker.seconds}
    entry = {SOCKET: str(_socket(site))} if site.worker.resident else {SITE: str(file.absolute())}
    return supernode(
        NodeSettings(
            link.address,
            state / "flower",
            config | entry,
            link.root_certificates,
            link.private_key,
            trusted,
            link.runtime_port,
        )
    )


def _socket(site: SiteConfig) -> Path:
    return Path(site.state) / "door" / "worker"


def until_signal() -> Callable[[], bool]:
    """Return a function that is true until Ctrl-C or SIGTERM comes; a second one interrupts."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return lambda: not received


def _data_problems(site: SiteConfig) -> list[str]:
    """Return what is wrong with the data, as far as that shows without a model."""
    from fedpeft.core.errors import DataError
    from fedpeft.data.request import DataRequest
    from fedpeft.data.source import choose_splits, read_source

    own = site.data
    request = DataRequest(
        source=own.source,
        train_split=own.train_split,
        header=own.header,
        separator=own.separator,
    )
    try:
        train, _, _ = choose_splits(read_source(request), request)
    except DataError as error:
        return [str(error)]
    return [] if len(train) else [f"data.source: {site.data.source} has no rows"]


def _summary_lines(site: SiteConfig) -> list[str]:
    allow, link = site.allow, site.superlink
    models = [*site.model.folders, *(site.model.allow or ["bundled models", "presets"])]
    return [
        f"{site.name}: ready. Data: {site.data.source}",
        f"server: {link.address}, {'TLS' if link.root_certificates else 'no TLS'}, "
        f"{'its own key' if link.private_key else 'no key'}, "
        f"{len(link.trusted_keys) or 'no'} trusted signer(s)",
        f"models: {', '.join(models)}; methods: {', '.join(allow.methods or ['all'])}; "
        f"at most {allow.max_rounds} rounds of {allow.max_epochs} epochs",
        f"leaves the site: the delta, {', '.join(allow.metrics) or 'no metrics'}, "
        f"{'the number of examples' if allow.num_examples else 'not the number of examples'}",
        f"privacy modes: {', '.join(site.privacy.modes)}; epsilon over all runs: "
        f"{site.privacy.epsilon if site.privacy.epsilon is not None else 'no limit'}",
    ]
