"""Finished models: their scores and costs, logged and compared."""
