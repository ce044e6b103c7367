"""The handshake: server and site exchange and compare facts about themselves before round 1.

    facts      name -> a word or a digest: backbone, inputs, delta, labels, experiment, versions
    compare    facts of the server, facts of the site -> the reasons why they do not match

Both sides use the same function: a server can refuse a site, and a site a server.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpeft.core.errors import DeltaMismatchError
from fedpeft.core.text import plain
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.loaded import InputSpec, TextInput
from fedpeft.tuning.tuned import TunedModel

VERSIONS = ("fedpeft", "torch", "transformers", "peft")
"""Packages whose version numbers must agree in the first two places."""

NOT_TOLD = "not told"
"""The fact `examples` of a site that keeps its number of examples to itself."""

_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model")
_LIMIT = 64 * 1024


def model_facts(tuned: TunedModel) -> dict[str, str]:
    """Describe a tuned model by digests of its backbone, preprocessing and delta.

    `backbone` is a fingerprint of the frozen weights by their names, without the initial values of
    the delta. `inputs` covers preprocessing and the tokenizer's files.
    """
    frozen = {*tuned.parameters, *tuned.buffers}
    return {
        "model": tuned.loaded.source,
        "method": tuned.method,
        "backbone": fingerprint(tuned.model, tuned.loaded.family, exclude=frozen),
        "inputs": _inputs_digest(tuned.loaded.inputs, tuned.loaded.folder),
        "delta": tuned.spec.digest,
        "parameters": str(tuned.spec.num_params),
    }


def label_fact(names: Sequence[str] | None) -> str:
    """Describe the classes by a digest of their names in order; "" where they have no names."""
    if names is None:
        return ""
    text = json.dumps(list(names), ensure_ascii=False)
    return f"{len(names)} classes {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def compare(expected: Mapping[str, str], facts: Mapping[str, str]) -> list[str]:
    """Return the reasons why a site does not match a server, one sentence each; [] if it matches.

    Args:
      expected: the server's facts.
      facts: the site's facts; a missing fact counts as different, except for labels.
    """
    reasons = [
        f"{word}: the server has {_short(expected[key])}, the site {_short(facts.get(key, ''))}: "
        f"{advice}"
        for key, (word, advice) in _MUST_AGREE.items()
        if key in expected and expected[key] != facts.get(key)
    ]
    ours, theirs = expected.get("labels", ""), facts.get("labels", "")
    if ours and theirs and ours != theirs:
        reasons.append(
            f"labels: the server has {ours}, the site {theirs}: list the classes, in the server's "
            "order, in data.classes of the site's file"
        )
    for package in VERSIONS:
        ours = expected.get(f"version.{package}", "")
        theirs = facts.get(f"version.{package}", "")
        if _release(ours) != _release(theirs):
            reasons.append(
                f"versions: the server has {package} {ours or 'none'}, the site "
                f"{theirs or 'none'}: the first two numbers must agree; install the same release"
            )
    return reasons


def announced(facts: Mapping[str, str]) -> int | None:
    """Return the number of examples that a site announces; None if it does not tell it.

    Raises:
      DeltaMismatchError: if it is no number of examples.
    """
    text = facts.get("examples", NOT_TOLD)
    if text == NOT_TOLD:
        return None
    if not re.fullmatch("[1-9][0-9]{0,14}", text, re.ASCII):
        raise DeltaMismatchError(
            f"examples: the site announces {plain(text, 40)!r}; allowed is a whole number above 0, "
            f"or {NOT_TOLD!r}"
        )
    return int(text)


def refuse_announced(
    facts: Mapping[str, str], most: Mapping[str, int], otherwise: int
) -> list[str]:
    """Return why a site's number of examples is refused, a sentence each; [] if it is not.

    Args:
      facts: the site's facts.
      most: site -> the most examples that it may announce.
      otherwise: the most for other sites.
    """
    try:
        number = announced(facts)
    except DeltaMismatchError as error:
        return [str(error)]
    name = facts.get("site", "")
    limit = most.get(name, otherwise)
    if number is None or number <= limit:
        return []
    return [
        f"examples: the site announces {number}, at most {limit} are allowed; raise "
        f"federation.max_examples, or federation.site_examples for {plain(name, 64)} alone"
    ]


def write_facts(facts: Mapping[str, str]) -> bytes:
    """Encode facts as JSON."""
    return json.dumps(dict(facts), sort_keys=True).encode()


def read_facts(blob: bytes) -> dict[str, str]:
    """Decode the facts that `write_facts` encoded.

    Raises:
      DeltaMismatchError: if the bytes hold no facts.
    """
    try:
        found = json.loads(blob) if len(blob) <= _LIMIT else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise DeltaMismatchError(
            f"handshake: found {len(blob)} bytes that are no facts; allowed are a JSON object with "
            f"texts as values, of at most {_LIMIT} bytes"
        )
    return {str(name): value for name, value in found.items()}


_MUST_AGREE: Mapping[str, tuple[str, str]] = {
    "experiment": ("experiment", "both must read the file alike; install the same release"),
    "method": ("tuning method", "both must tune alike"),
    "backbone": ("backbone", "the frozen weights differ; load the same files of the model"),
    "inputs": ("preprocessing", "the tokenizer or the image processor differs; take both from one "
               "folder"),
    "delta": ("delta", "names or shapes differ; both must tune the same model alike"),
}  # fmt: skip


def _inputs_digest(inputs: InputSpec, folder: Path | None) -> str:
    described = dataclasses.asdict(inputs) if inputs is not None else {}
    described.pop("folder", None)  # the place of the files may differ, their contents may not
    digest = hashlib.sha256(json.dumps([type(inputs).__name__, described]).encode())
    if isinstance(inputs, TextInput) and folder is not None:
        found = [name for name in _TOKENIZER if (folder / name).is_file()]
        for name in found[:1] if found[:1] == ["tokenizer.json"] else found:
            digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def _short(value: str) -> str:
    return f"{value[:12]}…" if len(value) == 64 else value or "nothing"
