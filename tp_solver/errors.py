"""What the library raises: one base class, and children that say on which floor the mistake lies.

Every message has the same four parts: the field, what it got, what is allowed, and a hint.
"""

from __future__ import annotations


class TPError(Exception):
    """Base class of every error raised on purpose by tp_solver.

    Args:
        field: where the mistake is (argument, TOML key, statement or file).
        got: the offending value, as it should be shown.
        expected: what is allowed there.
        hint: what to do about it.
    """

    def __init__(self, field: str, got: object, expected: str, hint: str = "") -> None:
        self.field, self.got, self.expected, self.hint = field, got, expected, hint
        text = f"{field}: got {_shown(got)}; expected {expected}."
        super().__init__(text + (f" Hint: {hint}" if hint else ""))


class InputError(TPError):
    """A value given by the user is malformed. Likely causes: a typo, a NaN in the data, swapped axes."""


class ProgramError(TPError):
    """A tensor program does not make sense. Likely causes: a matrix used on the wrong side, a missing readout."""


class ParameterizationError(TPError):
    """Exponents or constants that no limit exists for. Likely cause: a rate that grows too fast with the width."""


class RangeError(TPError, IndexError):
    """A layer, time, width or seed that the record does not hold."""


class BudgetError(TPError):
    """The work needs more memory than it may take."""


class FileFormatError(TPError):
    """A file is truncated, damaged, from a later version, or not ours."""


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value if value.startswith(("a ", "an ", "no ", "the ")) or " " in value else repr(value)
    text = str(value) if isinstance(value, (int, float)) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."
