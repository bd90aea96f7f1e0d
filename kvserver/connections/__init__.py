"""
The connections: who is connected, within which limits, and what each of them does.
"""
