"""Rounds: the client half and the server half of a round, written once for every engine."""
