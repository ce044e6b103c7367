"""The program of a SuperNode: Flower's own, but it ends when its connection is over.

    given up ──> Flower's loop returns ──> this process ends, and `fedpeft node` starts another one
                          └── on its own: a thread keeps the process alive for ever, and no message
                              reaches it any more

Flower gives a connection up when TLS is cut short or when the server answers with an error that
cannot be repeated, as while a server starts again or is flooded.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Never

_FAILED = 1


def end_with(run: Callable[[], None]) -> Never:
    """Run a function, and end this process when it returns, whatever its threads still do.

    The exit code is that of a `SystemExit`; 1 when the function returns or raises anything else.
    """
    code: object = _FAILED
    try:
        run()
    except SystemExit as end:
        code = end.code
    except BaseException:  # also an interrupt: the process ends all the same
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else _FAILED)


if __name__ == "__main__":
    from flwr.supernode.cli.flower_supernode import flower_supernode

    end_with(flower_supernode)
