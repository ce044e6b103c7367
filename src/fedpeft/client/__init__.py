"""What a client does: local training from a broadcast to an update. Knows nothing of the server."""
