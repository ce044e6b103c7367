"""A site's half of the app that Flower runs."""

from fedpeft.engines.flower.app import client_app
from fedpeft.federation.resident import answer

app = client_app(answer)
