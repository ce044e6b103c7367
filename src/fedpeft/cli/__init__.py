"""The command line: it parses, calls, prints and chooses the exit code. No other room prints."""

import sys

try:
    from fedpeft.cli import auditing, deployments, servers, shells, sites  # register their commands
    from fedpeft.cli.app import main
except KeyboardInterrupt:  # the imports take a tenth of a second
    print("\ninterrupted", file=sys.stderr)
    sys.exit(130)

__all__ = ["auditing", "deployments", "main", "servers", "shells", "sites"]
