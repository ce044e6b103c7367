"""An attack on a server's port, by somebody who has `ca.crt` and this file, and nothing else.

python attacker.py ADDRESS CA RUN FILE    prints {"what was tried": "how it ended"} as JSON

RUN is the number of the operator's run; an app that gets to run writes FILE.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)  # fmt: skip
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.runtime.runtime_http_client import RuntimeHttpClient

PROJECT = """
[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.server:app"
[tool.flwr.app.config]
x = 1
"""
SERVER = """
from pathlib import Path
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    Path({file!r}).write_text("I ran")
"""


def unsigned_app(file: str) -> StartRunRequest:
    files = {"plain/__init__.py": b"", "plain/server.py": SERVER.format(file=file).encode()}
    content, _ = build_fab_from_files({**files, "pyproject.toml": PROJECT.encode()})
    request = StartRunRequest()
    request.fab.CopyFrom(fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})))
    return request


def new_key() -> RegisterNodeRequest:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = key.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    return RegisterNodeRequest(public_key=pem)


def attempt(call, request, seen) -> str:
    try:
        return "done" if seen(call(request)) else "nothing"
    except httpx.HTTPStatusError as error:
        return f"refused: HTTP {error.response.status_code}"
    except httpx.HTTPError as error:
        return f"no connection: {type(error).__name__}"


def attack(address: str, authority: str, run: int, file: str) -> dict[str, str]:
    given = {"insecure": False, "root_certificates": Path(authority).read_bytes()}
    control = ControlHttpClient.from_server_address(address, interceptors=[], **given)
    runtime = RuntimeHttpClient.from_server_address(address, interceptors=[], **given)
    everything = lambda answer: True  # noqa: E731
    return {
        "list runs": attempt(control.ListRuns, ListRunsRequest(), lambda got: got.run_dict),
        "list nodes": attempt(control.ListNodes, ListNodesRequest(), everything),
        "register a key": attempt(control.RegisterNode, new_key(), lambda got: got.node_id),
        "submit an unsigned app": attempt(
            control.StartRun, unsigned_app(file), lambda got: got.run_id
        ),
        "stop a run": attempt(control.StopRun, StopRunRequest(run_id=run), lambda got: got.success),
        "take a task": attempt(runtime.AcquireTask, AcquireTaskRequest(), everything),
    }


if __name__ == "__main__":
    where, certificate, number, target = sys.argv[1:]
    print(json.dumps(attack(where, certificate, int(number), target)))
