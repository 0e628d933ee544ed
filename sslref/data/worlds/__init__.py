"""Procedural scenes with exact ground truth, each documented like a data set in the docstring of its module."""
