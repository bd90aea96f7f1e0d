"""
What operators see: the access log, metrics, health, and what the service manager hears.
"""
