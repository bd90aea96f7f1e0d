"""
Builds what setup.cfg describes, and leaves nothing behind.

What an earlier build has left in build/ would go into the next wheel, also modules that are gone
since; and a checkout may be read-only. So the build goes to a temporary folder.
"""

import os
import tempfile

import setuptools

with tempfile.TemporaryDirectory() as scratch:
    options = {"build": {"build_base": scratch}}
    if not os.access(".", os.W_OK):
        options["egg_info"] = {"egg_base": scratch}
    setuptools.setup(options=options)
