"""How a command ends: an error of ours becomes a message and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

__all__ = ["Interrupted", "ending"]

_INTERRUPTED = 130


class Interrupted(Exception):
    """The user stopped the command; the message says how to go on."""


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Turn errors of the block into a message on standard error and an exit code."""
    from fedpeft.core.errors import FedpeftError

    try:
        yield
    except FedpeftError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except Interrupted as stop:
        typer.echo(f"\n{stop}", err=True)
        raise typer.Exit(_INTERRUPTED) from stop
    except KeyboardInterrupt as stop:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(_INTERRUPTED) from stop
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone, and with it all complaints
        raise typer.Exit(0) from None
