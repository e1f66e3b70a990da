"""Loops over steps and neurons, compiled by Numba where it is installed, and what calls them."""
