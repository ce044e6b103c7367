"""What is kept of the frozen layers."""
