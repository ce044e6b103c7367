"""The control interface of a SuperLink: submit a run, read its status, stop it.

    bundle + configuration ──StartRun──> run     status: pending, starting, running, finished:how

The bundle is a few lines that import this package. It is the same, byte for byte, for every
experiment; whatever differs is sent as configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.core.version import VERSION
from fedpeft.engines.flower.messages import require_flower
from fedpeft.engines.flower.simulation import quiet_environment
from fedpeft.federation.bundle import STORE_PORT, Signature, app_store
from fedpeft.federation.site_keys import fingerprint

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient


class Unreachable(EngineError):
    """The SuperLink does not answer."""


@dataclass(frozen=True)
class Link:
    """How to reach a SuperLink.

    Attributes:
      address: HOST:PORT.
      root_certificates: file of the authority that issued its certificate; None for no TLS.
    """

    address: str
    root_certificates: str | None = None


@dataclass(frozen=True)
class RunState:
    """The state of a Flower run.

    Attributes:
      status: `pending`, `starting`, `running` or `finished`.
      how: how a finished run ended: `completed`, `failed` or `stopped`.
      details: why a failed run failed.
      bytes_in: bytes that the SuperLink received, as Flower counts them.
      bytes_out: bytes that it sent.
    """

    status: str
    how: str = ""
    details: str = ""
    bytes_in: int = 0
    bytes_out: int = 0


class Control:
    """A connection to a SuperLink's control interface.

    Args:
      link: how to reach the SuperLink.

    Raises:
      EngineError: if Flower is not installed here.
      ConfigError: if the certificate file cannot be read.
    """

    def __init__(self, link: Link) -> None:
        require_flower()
        quiet_environment()
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._link = link
        self._client = self._connect()

    def start(
        self,
        configuration: Mapping[str, str | bool | int | float],
        signatures: Sequence[Signature] = (),
        *,
        port: int = STORE_PORT,
    ) -> int:
        """Submit a run of our bundle.

        Args:
          configuration: settings of this run, by the keys that the bundle declares.
          signatures: signatures of the bundle, for sites that run signed ones only; () submits it
            unsigned.
          port: on loopback, where the SuperLink looks for a signed bundle.

        Returns:
          Flower's number of the run.

        Raises:
          Unreachable: if the SuperLink does not answer.
          EngineError: if it does not accept the run.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        content, action = make_bundle(), "start a run"
        request = StartRunRequest(override_config=user_config_to_proto(dict(configuration)))
        store: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if signatures:
            request.app_spec = _SPEC
            store = app_store(content, signatures, port=port)
            action = (
                "start a signed run: was flower-superlink started with "
                f"FLWR_SUPERGRID_API_URL=http://127.0.0.1:{port}, on this machine?"
            )
        else:
            fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
            request.fab.CopyFrom(fab_to_proto(fab))
        with store, self._request(action):
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise EngineError(
                f"engine: the SuperLink at {self._link.address} did not accept the run; its log "
                "says why"
            )
        return int(answer.run_id)

    def state(self, run: int) -> RunState:
        """Return the state of a run.

        Raises:
          Unreachable: if the SuperLink does not answer.
          EngineError: if it does not know the run.
        """
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._request("look up a run"):
            answer = self._client.ListRuns(ListRunsRequest(run_id=run))
        found = answer.run_dict.get(run)
        if found is None:
            raise EngineError(f"engine: the SuperLink at {self._link.address} knows no run {run}")
        status = found.status
        return RunState(
            status.status, status.sub_status, status.details, found.bytes_recv, found.bytes_sent
        )

    def stop(self, run: int) -> None:
        """Stop a run; one that has ended stays as it is.

        Raises:
          Unreachable: if the SuperLink does not answer.
        """
        from flwr.proto.control_pb2 import StopRunRequest

        with contextlib.suppress(_Refused), self._request("stop a run"):
            self._client.StopRun(StopRunRequest(run_id=run))

    def register(self, public_key: bytes) -> bool:
        """Register the key of a site, so that its SuperNode is let in.

        Args:
          public_key: as PEM.

        Returns:
          False if it was registered before.

        Raises:
          Unreachable: if the SuperLink does not answer.
          EngineError: if it refuses the key.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        if public_key.strip() in (key.strip() for key in self._node_keys().values()):
            return False
        with self._request("register a key"):
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key))
        return True

    def fingerprints(self) -> dict[int, str]:
        """Return node -> the fingerprint of the key under which the SuperLink knows it.

        Raises:
          Unreachable: if the SuperLink does not answer.
        """
        found = {}
        for node, key in self._node_keys().items():
            with contextlib.suppress(ValueError):  # a node without a usable key has none
                found[node] = fingerprint(key)
        return found

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _node_keys(self) -> dict[int, bytes]:
        """Return node -> public key, of the nodes that are registered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._request("list its nodes"):
            answer = self._client.ListNodes(ListNodesRequest())
        return {
            int(node.node_id): bytes(node.public_key)
            for node in answer.nodes_info
            if node.status != "unregistered"
        }

    def _connect(self) -> ControlHttpClient:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        file = self._link.root_certificates
        try:
            certificates = Path(file).read_bytes() if file else None
        except OSError as error:
            raise ConfigError(f"engine.root_certificates: {file}: {error}") from error
        return ControlHttpClient.from_server_address(
            server_address=self._link.address,
            insecure=file is None,
            root_certificates=certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    @contextlib.contextmanager
    def _request(self, action: str) -> Iterator[None]:
        import httpx

        where = f"engine.superlink: {self._link.address}"
        try:
            yield
        except httpx.HTTPStatusError as error:
            body = error.response.text.strip()[:300]
            code = error.response.status_code
            raise _Refused(f"{where}: refused to {action} (HTTP {code}): {body}") from error
        except (httpx.HTTPError, ConnectionError) as error:
            raise Unreachable(
                f"{where}: cannot be reached to {action}: {error}. Is flower-superlink running, "
                "and does engine.root_certificates fit its certificate?"
            ) from error


class _Refused(EngineError):
    """The SuperLink refused a request."""


def make_bundle() -> bytes:
    """Return the app bundle: a zip file whose bytes depend only on this package's version."""
    from flwr.cli.build import build_fab_from_files

    app = resources.files(__package__ or "") / "app"
    project = (app / "pyproject.toml").read_text("utf-8").replace("0.0.0", VERSION)
    modules = ("__init__.py", "server.py", "client.py")
    files = {f"fedpeft_app/{name}": (app / name).read_bytes() for name in modules}
    files["pyproject.toml"] = project.encode()
    content, _ = build_fab_from_files(files)
    return bytes(content)


_SPEC = "@fedpeft/fedpeft-app==1.0.0"  # a store of one app has one version of it
