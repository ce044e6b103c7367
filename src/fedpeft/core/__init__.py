"""What everything else stands on: errors, seeds, deltas. Knows nothing of models or clients."""
