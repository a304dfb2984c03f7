"""What can go wrong for a user, and the exit code that says so.

    GembError              5  the run failed: I/O, memory, numbers that are not finite
    ├── NegativeAnswer     1  the answer is no: a gate failed, two models differ
    ├── UsageError         2  wrong usage, configuration or input file
    ├── SomeRowsFailed     3  finished, but some rows of the input failed
    ├── Missing            4  something needed is absent: a model, a backend, a package, the network
    └── Stopped           75  stopped on request, and a later run can go on (sysexits' EX_TEMPFAIL)

A message is one line: what, where, and what to do. `gemb.cli.main` prints it; nothing else does.
The signals' codes (129, 130, 141, 143) are made in `gemb.cli.main`, too.
"""

from typing import ClassVar


class GembError(Exception):
    """The run failed in a way that the user can understand."""

    exit_code: ClassVar[int] = 5


class NegativeAnswer(GembError):
    """The command worked, and its answer is no."""

    exit_code = 1


class UsageError(GembError):
    """The command, its configuration or its input file is not right."""

    exit_code = 2


class SomeRowsFailed(GembError):
    """The run finished, and some rows have an error in the place of a vector."""

    exit_code = 3


class Missing(GembError):
    """Something that the run needs is not here."""

    exit_code = 4


class Stopped(GembError):
    """The run was stopped on request, and what it did is kept."""

    exit_code = 75
