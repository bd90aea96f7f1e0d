"""
Supervision as in OTP, signals, and how the process ends.
"""
