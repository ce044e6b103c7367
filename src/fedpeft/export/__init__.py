"""Folders that other libraries load."""
