"""The benchmark: fedpeft against other ways of doing the same work, on one machine.

    make bench                  every row whose code changed since it was last measured
    make bench ROW=3            one row
    python -m bench 3 --small   the same at a size that only shows that it works

A row is a module with `run(small) -> dict`; `rows.py` lists them, `docs/lab/benchmarks/` keeps what
they measured, `page.py` writes docs/lab/benchmarks.md from that and from nothing else.
"""
