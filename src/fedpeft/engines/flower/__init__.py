"""The engine on Flower: simulations and deployments."""
