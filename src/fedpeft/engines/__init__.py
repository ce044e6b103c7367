"""Where clients live: in worker processes on this machine."""
