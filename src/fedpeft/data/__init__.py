"""Data: sources, transforms, partitions. Gives every client its rows of one table."""
