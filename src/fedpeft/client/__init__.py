"""Clients: local training, from a broadcast to an update. Independent of the server."""
