"""The one error that a user is meant to read, and what others say."""

_NO_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "bad_alloc",  # the C++ library under it
    "could not create a",  # oneDNN
    "ALLOC_FAILED",  # cuBLAS
    "CUDA error: out of memory",  # the CUDA runtime
    "unable to find an engine",  # cuDNN, where the memory is too little for each of its ways
)


class SpectraError(ValueError):
    """Tell in one line what was given, what was expected, which harm was avoided, and the way out.

    The command lines print the message and exit with code 2; library calls raise it.
    """


class TooLarge(SpectraError):
    """Tell that what was asked for needs more memory than is free."""


class StorageError(SpectraError):
    """Tell that results cannot be written: the disk is full, or the folder is not writable."""


def first_line(error: BaseException, longest: int | None = 160) -> str:
    """Take the first line of what an error says, and no more than `longest` characters of it.

    Returns:
        The line; empty where the error says nothing.
    """
    return next(iter(str(error).splitlines()), "")[:longest]


def out_of_memory(error: Exception) -> bool:
    """Recognise running out of memory, whoever noticed it."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, which not every command loads
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)
    return named or told or isinstance(error, MemoryError)
