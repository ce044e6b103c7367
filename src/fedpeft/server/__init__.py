"""The server's work: choosing clients, combining updates, the algorithms."""
