"""The contestants: programs of their own, each run in a fresh process.

Those of other systems import nothing of fedpeft: they read their work from a folder (`work.py`).
"""
