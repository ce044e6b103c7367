"""The audit of a private federation's noise."""
