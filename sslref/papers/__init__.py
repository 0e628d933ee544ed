"""Reference implementations, one module a paper, each readable from top to bottom."""
