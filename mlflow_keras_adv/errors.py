"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right: a bad value, a missing file, a store out of reach.

    The message says what was received, what was expected and what to do. Entry points print it
    alone, without a traceback.
    """
