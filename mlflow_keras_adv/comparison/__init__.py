"""Comparison of any runs: a table, a page to read from disk, MLflow's own charts prepared."""
