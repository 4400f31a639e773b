"""The one error that a user is meant to read."""


class SpectraError(ValueError):
    """Tell in one line what was given, what was expected, which harm was avoided, and the way out.

    The command lines print the message and exit with code 2; library calls raise it.
    """
