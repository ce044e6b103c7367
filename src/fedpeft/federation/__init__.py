"""Sites and the server of a deployment."""
