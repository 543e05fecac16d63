"""Kernels: one contract a folder, a table of forms, the plain one the oracle."""
