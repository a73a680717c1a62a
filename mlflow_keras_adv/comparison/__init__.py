"""Compares any runs: a table, a page to read from disk, and a prepared view of MLflow's charts."""
