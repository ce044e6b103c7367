"""The server's half of the app that Flower runs."""

from fedpeft.engines.flower.app import server_app
from fedpeft.federation.serving import serve

app = server_app(serve)
