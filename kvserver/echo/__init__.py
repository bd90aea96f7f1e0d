"""
The echo: the protocol that is served by default.
"""
