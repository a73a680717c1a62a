"""What differs between the releases of other packages: one function each, and nothing elsewhere.

A module here is named after the package that it is about. Each function says from which release on
it is needless. Modules of the store side know no Keras.
"""
