"""
Each promise of the README, kept by the real daemon in its own process.
"""
