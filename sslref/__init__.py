"""Self-supervised learning, paper by paper: readable reference implementations in PyTorch."""

__version__ = "0.1.0"
