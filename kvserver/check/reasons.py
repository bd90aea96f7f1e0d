"""
Why a connection fails, in words.
"""

import errno
import os
import ssl

RESETS = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN)
"""
What the kernel says of a connection that was reset. C{ENOTCONN} is what getpeername(2) says when
the reset has come just after the connection was established.
"""


def meaningOf(error: OSError) -> str:
    """
    Why a connection could not be established, in words.
    """
    if error.errno is None:
        return str(error)
    return {
        errno.ETIMEDOUT: "no answer",
        errno.ENOENT: "no such UNIX socket",
        errno.EMFILE: "too many open files here",
    }.get(error.errno, os.strerror(error.errno).lower())


def reasonOf(error: ssl.SSLError) -> str:
    """
    What OpenSSL says, in words.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"certificate verify failed: {error.verify_message} (--ca FILE trusts an authority, "
            "--insecure any certificate)"
        )
    reason = error.reason or str(error)
    return reason.lower().replace("_", " ")
