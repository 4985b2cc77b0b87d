"""What went wrong, sorted by whose business it is.

A `UserError` is something the person who wrote the study can mend: it carries one sentence that names the key or
file, the value, and what would be legal. The command line and the workflow's scripts print that sentence and leave
with exit code 2. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input; the message is one sentence for the user."""


class UnsupportedSize(UserError):
    """An image size that the model's own preprocessing cannot handle."""


class Unsupported(UserError):
    """Something that cannot run on this machine for want of a library; the message says which, and how to get it.

    To a session it is an outcome (`status: unsupported`) rather than a mistake: the study's other subjects go on.
    """
