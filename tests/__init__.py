"""
The tests: logic without sockets, then each promise once against the real daemon in its own process.
"""
