"""The command line: it parses, calls, prints and chooses the exit code. No other room prints."""

from fedpeft.cli import auditing, deployments, servers, shells, sites  # register their commands
from fedpeft.cli.app import main

__all__ = ["auditing", "deployments", "main", "servers", "shells", "sites"]
