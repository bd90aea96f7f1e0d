"""
Protocols of one's own, served by C{--protocol}.
"""
