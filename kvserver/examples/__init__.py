"""
Example protocols, to be served with C{--protocol}.
"""
