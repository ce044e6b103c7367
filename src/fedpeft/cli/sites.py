"""`node`, `sign` and `split`: a site, the bundle that it trusts, and test data for sites."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.app import app
from fedpeft.cli.completing import choices
from fedpeft.cli.ending import ending
from fedpeft.cli.options import File, Sets, expanded
from fedpeft.cli.printing import say


@app.command()
@ending()
def node(
    site: Annotated[Path, typer.Argument(metavar="SITE.toml", hidden=True, callback=expanded)],
    check: Annotated[
        bool, typer.Option("--check", help="List every problem of the file, and end.")
    ] = False,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            help="all, worker (data) or supernode (network).",
            autocompletion=choices(("all", "worker", "supernode")),
        ),
    ] = "all",
    unprotected: Annotated[
        bool,
        typer.Option(
            "--i-accept-an-unprotected-network",
            help="Join a server elsewhere without TLS, key or signatures.",
        ),
    ] = False,
) -> None:
    """Take part in a federation as one site.

    SITE.toml holds the site's name, its data, the server's address and limits on experiments. A
    worker holds backbone and data; a SuperNode connects to the server. Ctrl-C ends both.

    \b
    Examples:
      fedpeft node site.toml --check
      fedpeft node site.toml
      fedpeft node site.toml --part worker
    """
    import fedpeft.cli.site_running as site_running

    if check:
        raise typer.Exit(site_running.check_command(site, part, unprotected=unprotected))
    site_running.node_command(site, part, unprotected=unprotected)


@app.command()
@ending()
def split(
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.", callback=expanded)
    ],
    experiment: File = None,
    sets: Sets = None,
    superlink: Annotated[
        str | None,
        typer.Option(
            "--superlink",
            metavar="HOST:PORT",
            help="Address in the sites' files: 127.0.0.1:8000, with --certificates :8443.",
        ),
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(
            "--certificates",
            metavar="DIR",
            help="Output of deploy/certificates.sh.",
            callback=expanded,
        ),
    ] = None,
) -> None:
    """Write each client's part of an experiment as a folder.

    Each folder holds data and a site.toml for `fedpeft node`. DIR/server holds the test set and the
    experiment for `fedpeft run`, which gives the same delta as the experiment on one machine.

    \b
    Examples:
      fedpeft split my.toml --to parts
      fedpeft split --set data.partition.clients=3 --to parts --certificates certs
    """
    from fedpeft.experiment.read import read_experiment
    from fedpeft.federation.split import ServerAddress
    from fedpeft.federation.split import split as split_into

    usual = "127.0.0.1:8443" if certificates else "127.0.0.1:8000"
    address = ServerAddress(superlink or usual, certificates)
    *sites, server = split_into(read_experiment(experiment, sets or []), to, address)
    say(f"{len(sites)} sites: {sites[0]} to {sites[-1]}")
    say(f"server: {server / 'experiment.toml'}")
    say(f"next: fedpeft node {os.path.join(sites[0], 'site.toml')} --check")


@app.command()
@ending()
def sign(
    key: Annotated[
        Path,
        typer.Option(
            "--key", metavar="FILE", help="Private key of ssh-keygen -t ed25519.", callback=expanded
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="File of the signature.", callback=expanded)
    ],
) -> None:
    """Sign the app bundle of this release.

    A site with superlink.trusted_keys runs only bundles that one of these keys has signed. The
    server gets the signature (engine.signatures) but never the key. The bundle depends on the
    release alone: it is a few lines that call the fedpeft that is installed at the site.

    \b
    Examples:
      ssh-keygen -t ed25519 -N "" -f publisher
      fedpeft sign --key publisher --to publisher.signature.json
    """
    from fedpeft.engines.flower.messages import require_flower
    from fedpeft.federation.bundle import sign as sign_bundle
    from fedpeft.federation.bundle import write_signature
    from fedpeft.federation.control import make_bundle

    require_flower()
    signature = sign_bundle(make_bundle(), key)
    write_signature(to, signature)
    say(f"signed: bundle {signature.bundle[:16]}, key {signature.key}, written to {to}")
