"""Checks of a tracking store, before a training relies on it."""
