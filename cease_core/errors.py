"""The one exception that reaches a user as it is."""


class CeaseError(ValueError):
    """Input that cannot be used, said in one sentence that ends with what to do.

    The message is shown unchanged by the command line (exit code 2) and by napari's notifications,
    so it names the file or value at fault and never a stack frame.
    """
