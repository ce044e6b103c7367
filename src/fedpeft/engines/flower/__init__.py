"""The Flower engine, for simulations and deployments."""
