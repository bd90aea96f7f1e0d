"""
Where clients come in: what is listened on, the listener, and the way to a protocol.
"""
