"""The command line: parse, call, print, choose the exit code. Nothing else prints."""

from fedpeft.cli import auditing, deployments, sites  # register their commands
from fedpeft.cli.app import main

__all__ = ["auditing", "deployments", "main", "sites"]
