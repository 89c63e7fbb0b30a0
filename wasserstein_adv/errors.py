"""The one exception that the library raises at its border."""


class InputError(ValueError):
    """An argument or a file that cannot be used.

    The message is one line that names the argument and says what was wrong with it. Commands print
    it and exit with status 2; everything else that goes wrong is a bug and keeps its traceback.
    """
