"""Studies over runs: the privacy audit, the domain gap, Theorem 1."""
