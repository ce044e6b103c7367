"""What the server does: choosing clients, combining updates, the algorithms."""
