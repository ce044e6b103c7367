"""Ctrl-C while processes start: it is held until they run, and ends this process, not the children.

A terminal sends SIGINT to a whole group of processes. Python may lose one that arrives while it
forks (an error in a hook of the fork is printed and dropped), and a child that has not set its own
handler yet dies with a traceback.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def interrupts_held(method: str) -> Iterator[None]:
    """Start processes inside the block: an interrupt is raised when the block ends.

    Children begin with SIGINT blocked; they call `ignore_interrupts`.

    Args:
      method: how they start: `fork`, `spawn` or `forkserver`.
    """
    held = list[int]()
    if method != "fork":
        resource_tracker.ensure_running()  # its own start would unblock SIGINT
    blocked = _change_mask("SIG_BLOCK", {signal.SIGINT})
    main = threading.current_thread() is threading.main_thread()
    # other threads of this process may take the signal: the main thread then runs the handler
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if main else 0
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
        _change_mask("SIG_SETMASK", blocked)
        if held:
            signal.raise_signal(signal.SIGINT)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent: called first in a child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _change_mask("SIG_UNBLOCK", {signal.SIGINT})


def _change_mask(how: str, signals: set[signal.Signals]) -> set[signal.Signals]:
    """Change which signals this thread holds back, where the system can; return the old ones."""
    if not hasattr(signal, "pthread_sigmask"):
        return set()
    return {*signal.pthread_sigmask(getattr(signal, how), signals)}  # type: ignore[arg-type]
