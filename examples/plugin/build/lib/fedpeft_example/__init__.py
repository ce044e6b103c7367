"""Four names for fedpeft: an algorithm, a stage, a sampler and a callback."""
