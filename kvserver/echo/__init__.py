"""
What is served by default: the echo.
"""
