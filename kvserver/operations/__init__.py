"""
What operators see: the access log, metrics, health, and the notifications to the service manager.
"""
