"""
Where clients connect: the sockets listened on, the listener, and the route to a protocol.
"""
