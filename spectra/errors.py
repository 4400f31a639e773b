"""The one error that a user is meant to read."""


class SpectraError(ValueError):
    """Tell in one line what was given, what was expected, which harm was avoided, and the way out.

    The command lines print the message and exit with code 2; library calls raise it.
    """


class StorageError(SpectraError):
    """Tell that results cannot be written: the disk is full, or the folder is not writable."""
