"""`server` and `admit`: the server of a federation, and which key each site has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.app import app
from fedpeft.cli.ending import ending
from fedpeft.cli.options import expanded
from fedpeft.cli.printing import say


@app.command()
@ending()
def server(
    folder: Annotated[Path, typer.Argument(metavar="DIR", hidden=True, callback=expanded)],
    certificates: Annotated[
        Path | None,
        typer.Option(
            "--certificates",
            metavar="DIR",
            help="Output of deploy/certificates.sh.",
            callback=expanded,
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="What sites call.")
    ] = "0.0.0.0:8443",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Of the SuperLink, on loopback.")
    ] = 8000,
    store_port: Annotated[
        int,
        typer.Option("--store-port", min=1, max=65535, help="engine.store_port, on loopback."),
    ] = 8090,
    part: Annotated[
        str, typer.Option("--part", help="all, superlink (control, rounds) or gateway (network).")
    ] = "all",
    local: Annotated[
        bool, typer.Option("--local", help="Sites on this machine only: no TLS, no keys.")
    ] = False,
) -> None:
    """Run the server of a federation until Ctrl-C.

    Flower's SuperLink listens on loopback, because whoever reaches it controls it. A gateway
    (nginx) ends TLS and lets sites reach the calls that they need. DIR is the server's own folder.

    \b
    Examples:
      fedpeft server server --certificates certs
      fedpeft server server --local
    """
    from fedpeft.cli.site_running import until_signal
    from fedpeft.core.errors import ConfigError
    from fedpeft.federation.processes import follow
    from fedpeft.federation.server import ServerSettings, children

    if part not in ("all", "superlink", "gateway"):
        raise ConfigError(f"--part: found {part!r}; allowed are all, superlink, gateway")
    settings = ServerSettings(folder, listen, port, store_port, certificates, local=local)
    started = children(settings, part)
    where = "" if local or part == "superlink" else f"; sites call {listen}"
    say(f"server: SuperLink on 127.0.0.1:{port}{where}. Ctrl-C ends it", err=True)
    follow(started, goes_on=until_signal())


@app.command()
@ending()
def admit(
    site: Annotated[str, typer.Argument(metavar="SITE", hidden=True)],
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", hidden=True, callback=expanded)],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", help="The folder of `fedpeft server`.", callback=expanded
        ),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Give the site another key than it had.")
    ] = False,
) -> None:
    """Admit a site to a federation, under its name and its key.

    The key is registered at the running SuperLink, and bound to the name in DIR/sites.toml: a node
    with another key is refused under that name. Compare the fingerprint with the site's owner.

    \b
    Examples:
      fedpeft admit hospital-a hospital-a.pub --to server
      fedpeft admit hospital-a new.pub --to server --replace
    """
    from fedpeft.federation.admission import admit as admit_site

    fingerprint, fresh = admit_site(site, key, to, replace=replace)
    state = "registered" if fresh else "was registered before"
    say(f"{site}: {fingerprint}, {state}, bound to this name in {to / 'sites.toml'}")
