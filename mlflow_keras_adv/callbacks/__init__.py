"""Callbacks for `fit` and for loops, one per file."""
