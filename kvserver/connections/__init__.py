"""
The connections: the registry, the limits, and what each connection does.
"""
