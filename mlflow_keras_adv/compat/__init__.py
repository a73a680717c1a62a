"""Differences between releases of other packages, and their private names: a function for each.

A module is named after its package. Each function says from which release on it is no longer
needed. Modules of the store side know no Keras.
"""
