"""The one error that a user is meant to see: a single clear line that says what to do."""


class UserError(Exception):
    """Something that the user can put right. The command line prints it as one line and exits with 2.

    Raise it where the mistake is known best, with a message that names the thing (a file, a field, a key) and
    says what would work instead. Programming errors stay ordinary exceptions with their traceback.
    """


class NothingThere(UserError):
    """Data that has no example of what was asked for; some callers can do without."""


def pick(kind: str, name: str, known) -> str:
    """Return `name` when it is among `known`, else raise a `UserError` that lists what there is."""
    if name in known:
        return name
    raise UserError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(known))}")
