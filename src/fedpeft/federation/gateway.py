"""The gateway of a server: what the network reaches of a SuperLink, and nothing else.

    network ──TLS──> nginx ──POST /v1/fleet/CALL, one of CALLS──> SuperLink on 127.0.0.1
                       └── anything else: 404

A SuperLink answers three interfaces on one port. Its control and runtime interfaces ask for no
credential: whoever reaches them submits code, registers keys and stops runs. So the SuperLink
listens on loopback alone. The gateway ends TLS, and the path that it passes on is put together
from a name of the list below: never the one that was requested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.federation.processes import Child, program

CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "pull-object",
    "push-object",
    "confirm-message-received",
)
"""The calls of a SuperNode whose key the operator registered; it never registers itself."""

_INSTALL = (
    "install nginx (`apt-get install nginx-light`), or put another proxy in its place with the \
rules of deploy/nginx.conf and start `fedpeft server --part superlink`"
)


@dataclass(frozen=True)
class Gateway:
    """The settings of a gateway.

    Attributes:
      listen: HOST:PORT that sites call.
      port: the SuperLink's port on loopback.
      certificates: folder with `server.crt` and `server.key`, and with `ca.crt`, which vouches for
        the SuperLink's certificate.
      folder: folder of the gateway's own files; nothing of a message is written there.
    """

    listen: str
    port: int
    certificates: Path
    folder: Path


def configuration(settings: Gateway) -> str:
    """Return nginx's configuration.

    Raises:
      ConfigError: if a path holds characters that cannot stand in it.
    """
    for file in (settings.certificates, settings.folder):
        if set(str(file)) & set("\"'\\;{}$\n"):
            raise ConfigError(f"{file}: quotes, braces and ; cannot stand in a path of a server")
    return _TEMPLATE.format(
        listen=settings.listen,
        port=settings.port,
        certificates=settings.certificates,
        pid=f'"{settings.folder}/nginx.pid"',
        log=f'"{settings.folder}/access.log"',
        temp=f'"{settings.folder}/temp"',
        calls="|".join(call for call in CALLS if call != "push-object"),
    )


def gateway(settings: Gateway, file: Path) -> Child:
    """Return nginx's command for a configuration file.

    Raises:
      EngineError: if nginx is not installed here.
    """
    command = [program("nginx", _INSTALL), "-e", "stderr", "-p", str(settings.folder)]
    advice = {
        "Address already in use": "Choose another --listen.",
        "Permission denied": "Ports below 1024 need rights of their own; --listen takes another.",
    }
    return Child("gateway", [*command, "-c", str(file)], advice=advice, mask=0o077)


_TEMPLATE = """\
# The gateway of a federation's server: ends TLS, and admits SuperNodes to Flower's fleet calls.
# Everything else of the SuperLink stays on 127.0.0.1. Written by `fedpeft server`.
daemon off;
pid {pid};
error_log stderr notice;
worker_rlimit_nofile 20000;
events {{
  worker_connections 8192;  # requests left half sent count here, and under no other limit
}}
http {{
  server_tokens off;
  map $request $start {{
    "~^(?<first>.{{0,200}})" $first;
  }}
  map "$status $limit_req_status" $kept {{
    "~^2" 0;  # sites call every few seconds; what was refused is kept
    "~REJECTED" 0;  # but nobody fills this disk: a few lines a second and address
    "~^4.. $" 0;  # nor what is no request at all
    default 1;
  }}
  limit_req_zone $binary_remote_addr zone=lines:1m rate=5r/s;
  log_format short '$remote_addr [$time_local] "$start" $status $body_bytes_sent';
  access_log {log} short if=$kept;
  client_body_temp_path {temp};
  proxy_temp_path {temp};
  fastcgi_temp_path {temp};
  uwsgi_temp_path {temp};
  scgi_temp_path {temp};
  limit_conn_zone $binary_remote_addr zone=address:1m;
  limit_conn_zone $binary_remote_addr zone=uploads:1m;
  server {{
    listen {listen} ssl;
    ssl_certificate "{certificates}/server.crt";
    ssl_certificate_key "{certificates}/server.key";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;

    # The SuperLink holds a whole request in memory before it looks at its signature.
    limit_conn address 128;
    client_max_body_size 64k;  # a list of 900 parts; ten thousand lock its database for minutes
    large_client_header_buffers 4 8k;
    client_header_timeout 10s;
    client_body_timeout 60s;  # between two reads, as the others
    send_timeout 60s;
    keepalive_timeout 75s;
    limit_req zone=lines burst=20 nodelay;
    limit_req_dry_run on;  # counts what is logged, and refuses nothing
    limit_req_log_level info;
    limit_conn_log_level info;
    error_page 403 = @refused;

    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate "{certificates}/ca.crt";
    proxy_ssl_name localhost;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Connection "";
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto https;
    proxy_connect_timeout 5s;
    proxy_read_timeout 120s;
    proxy_send_timeout 60s;
    proxy_request_buffering off;  # nothing of a message on this disk
    proxy_max_temp_file_size 0;
    proxy_intercept_errors off;

    location = /v1/fleet/push-object {{
      limit_except POST {{
        deny all;
      }}
      limit_conn address 128;
      limit_conn uploads 32;
      client_max_body_size 6m;  # Flower sends objects in parts of 5 MiB
      proxy_pass https://127.0.0.1:{port}/v1/fleet/push-object;
    }}
    location ~ ^/v1/fleet/(?<call>{calls})\\z {{
      limit_except POST {{
        deny all;
      }}
      proxy_pass https://127.0.0.1:{port}/v1/fleet/$call;
    }}
    location / {{
      deny all;
      error_log stderr crit;
    }}
    location @refused {{
      return 404;
    }}
  }}
}}
"""
