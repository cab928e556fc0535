"""The error that ends a run before it has a verdict: bad input, a missing program, no privilege."""


class CannotRun(Exception):
    """The rig could not do what was asked; the message is one line: what is wrong and what to do."""
