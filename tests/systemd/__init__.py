"""
The units, under a real systemd. C{python -m tests.systemd} boots one and tests them in it.
"""
