"""One round: the client half and the server half, written once for every engine."""
