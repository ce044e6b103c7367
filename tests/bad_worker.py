"""A site's worker that misbehaves differently in every round: `python bad_worker.py SITE.toml`."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import torch

from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.experiment.site_file import read_site
from fedpeft.federation.resident import serve
from fedpeft.federation.site_setup import make_site
from fedpeft.wire import messages

FAULTS = {
    2: "not finite",
    3: "reply refused",
    4: "reply refused",
    5: "cannot be decoded",
    6: "the most allowed for this delta",
    7: "it is for turn 1, the request was for turn 7",
    8: "I do not want to",
    9: "no answer within",
}
"""Round -> what the server's record must say of it; round 1 is honest."""


def spoil(request: Request, answer: Answer) -> Answer:
    number = request.round
    if request.action != "train" or number not in FAULTS:
        return answer
    tensors, notes = messages.decode(answer.blob)
    delta = tensors["delta"]
    changed = {2: delta * torch.nan, 3: delta[:-1], 4: delta.double()}.get(number)
    if changed is not None:
        blob = messages.encode({**tensors, "delta": changed}, notes)
        return dataclasses.replace(answer, blob=blob)
    if number == 5:
        return dataclasses.replace(answer, blob=answer.blob[:-9])
    if number == 6:
        return dataclasses.replace(answer, blob=answer.blob + bytes(2**21))
    if number == 7:
        return dataclasses.replace(answer, round=1)
    if number == 8:
        return dataclasses.replace(answer, blob=b"", refused="I do not want to")
    time.sleep(600)
    return answer


def main() -> None:
    site = read_site(Path(sys.argv[1]))
    honest = make_site(site)
    serve(
        Path(site.state) / "door" / "worker",
        lambda request: spoil(request, honest.take(request)),
        max_bytes=2**30,
    )


if __name__ == "__main__":
    main()
