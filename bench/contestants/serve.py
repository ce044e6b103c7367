"""A contestant that stays: reads calls from standard input, writes answers to standard output.

    {"name": "open", "arguments": {...}}  ->  {"value": null}
    {"name": "round", "arguments": {}}    ->  {"value": 0.81}   or   {"error": "..."}

Usage: python -m bench.contestants.serve MODULE
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Answer calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    module = importlib.import_module(sys.argv[1])
    functions: Mapping[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        call = json.loads(line)
        answer: dict[str, Any] = {"value": None}
        try:
            if call["name"] == "open":
                if "close" in functions:
                    functions["close"]()
                functions = module.open_session(**call["arguments"])
            else:
                answer["value"] = functions[call["name"]](**call["arguments"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if "close" in functions:
        functions["close"]()


if __name__ == "__main__":
    main()
