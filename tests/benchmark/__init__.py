"""
How fast the daemon is, next to others: C{python -m tests.benchmark}.
"""
