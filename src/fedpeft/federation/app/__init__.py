"""Runs fedpeft, which is installed where this runs."""
