"""Starting runs: one, a sweep, a simulation from Python."""
