"""
Worker processes, which serve connections on all cores.
"""
