"""Finished models: what they score and cost, on record and side by side."""
