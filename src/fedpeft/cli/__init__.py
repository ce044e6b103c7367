"""The command line: parse, call, print, choose the exit code. Nothing else prints."""

from fedpeft.cli.app import main

__all__ = ["main"]
