"""The one error that a user is meant to read, and what others say."""


class SpectraError(ValueError):
    """Tell in one line what was given, what was expected, which harm was avoided, and the way out.

    The command lines print the message and exit with code 2; library calls raise it.
    """


class StorageError(SpectraError):
    """Tell that results cannot be written: the disk is full, or the folder is not writable."""


def first_line(error: BaseException, longest: int | None = 160) -> str:
    """Take the first line of what an error says, and no more than `longest` characters of it.

    Returns:
        The line; empty where the error says nothing.
    """
    return next(iter(str(error).splitlines()), "")[:longest]


def root_cause(error: BaseException) -> BaseException:
    """Find the error while which all the later ones were raised."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def out_of_memory(error: Exception) -> bool:
    """Recognise running out of memory, whoever noticed it."""
    # The CPU allocator, the C++ library under it, oneDNN, which does not say memory, cuBLAS, the
    # CUDA runtime, and cuDNN, whose last word it is where no way fits into the memory.
    words = ("can't allocate memory", "bad_alloc", "could not create a", "ALLOC_FAILED")
    words += ("CUDA error: out of memory", "unable to find an engine")
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which not every command loads
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return named or told or isinstance(error, MemoryError)
