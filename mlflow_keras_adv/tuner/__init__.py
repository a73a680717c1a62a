"""Keras Tuner: every search one run, every trial a run nested in it."""
