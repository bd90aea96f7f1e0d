"""
Logic, tested in memory. It mirrors the folders of kvserver.
"""
