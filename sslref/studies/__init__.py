"""Experiments over several papers, with a ledger entry each as the papers have; a page of the book shows the result."""
