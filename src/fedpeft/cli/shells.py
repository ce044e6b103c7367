"""`completion`: commands, options, keys and names that a shell completes at Tab.

    shell ──words of the line──> fedpeft completion SHELL -- WORD... ──> VALUE <tab> what it is

The scripts beside this file ask at every Tab. Where nothing is known, the line `:files` asks the
shell for its own completion of paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import click
import typer
from click.shell_completion import ShellComplete

from fedpeft.cli.app import app
from fedpeft.cli.completing import choices
from fedpeft.cli.ending import ending
from fedpeft.core.errors import ConfigError
from fedpeft.core.text import nearest

SHELLS = ("bash", "fish", "zsh")
"""The shells that have a script."""


@app.command()
@ending()
def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", hidden=True, autocompletion=choices(SHELLS)),
    ],
    words: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None,
) -> None:
    """Print a script that completes commands, keys and names at Tab.

    SHELL is bash, zsh or fish. Load the script from the shell's own start file.

    \b
    Examples:
      echo 'source <(fedpeft completion bash)' >> ~/.bashrc
      fedpeft completion zsh > "${fpath[1]}/_fedpeft"
      fedpeft completion fish > ~/.config/fish/completions/fedpeft.fish
    """
    script = script_of(shell)
    if words is None:
        typer.echo(script, nl=False)
        return
    for line in candidates(typer.main.get_command(app), words):
        typer.echo(line)


def script_of(shell: str) -> str:
    """Return the script that a shell reads to complete `fedpeft`.

    Raises:
      ConfigError: if there is none for this shell.
    """
    if shell not in SHELLS:
        raise ConfigError(
            f"completion {shell!r}: there is no such script; {nearest(shell, SHELLS)}"
        )
    return (Path(__file__).parent / f"completion.{shell}").read_text("utf-8")


def candidates(command: click.Command, words: Sequence[str]) -> Iterator[str]:
    """Yield what the last word of a line can become.

    Args:
      command: the whole command line.
      words: those of the line after the program's name, up to the cursor; the last may be empty.
    """
    *before, last = words or ("",)
    found = ShellComplete(command, {}, "fedpeft", "").get_completions(before, last)
    if not found and not last.startswith("-"):
        yield ":files"
    for item in found:
        yield f"{item.value}\t{' '.join((item.help or '').split())}"
