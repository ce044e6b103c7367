"""The end of a command: an error of ours becomes a message and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from fedpeft.cli.printing import say

_INTERRUPTED = 130
_USAGE = 2


class Interrupted(Exception):
    """The user stopped the command; the message names the command that resumes it."""


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Turn errors of the block, or of a decorated command, into a message and an exit code."""
    from fedpeft.core.errors import FedpeftError
    from fedpeft.core.storage import disk_words, is_full

    try:
        yield
    except FedpeftError as error:
        say(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except Interrupted as stop:
        typer.echo(f"\n{stop}", err=True)  # a command is copied whole: never broken
        raise typer.Exit(_INTERRUPTED) from stop
    except KeyboardInterrupt as stop:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(_INTERRUPTED) from stop
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads our output any more; be silent
        raise typer.Exit(0) from None
    except OSError as error:
        if error.filename is None and not is_full(error):
            raise
        say(f"error: {disk_words(error)}", err=True)
        raise typer.Exit(_USAGE) from error
