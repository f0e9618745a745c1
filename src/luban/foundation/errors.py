"""An error says what is wrong, why, and what to try; it costs the user no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from luban.foundation.messages import t


class LubanError(Exception):
    """A mistake or a misfortune that the user can act on.

    ``what``, ``why`` and ``fix`` are templates (see messages.py) filled from ``values``; name the file, the
    line and the field in them. What Luban itself got wrong is an assertion, not a LubanError.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "", /, **values: object):
        self.what, self.why, self.fix, self.values = what, why, fix, values
        super().__init__(self.text())

    def text(self) -> str:
        """The three sentences in the reader's language, one a line."""
        lines = [t(self.what, **self.values)]
        if self.why:
            lines.append(t("why") + ": " + t(self.why, **self.values))
        if self.fix:
            lines.append(t("try") + ": " + t(self.fix, **self.values))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


class ConfigError(LubanError):
    """A recipe, an override or a call holds something that Luban does not accept."""

    exit_code = 2


class DataError(LubanError):
    """The user's data cannot be used as it is."""

    exit_code = 3


class LockedError(LubanError):
    """Another process is at work in the same folder."""

    exit_code = 4


class Interrupted(LubanError):
    """The run was asked to stop, saved what it had, and can be continued with the same command."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may requeue


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` most likely meant, or None."""
    known = list(known)
    close = difflib.get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    return next((name for name in known if close and name.lower() == close[0]), None)


INSTALL = "in Luban's folder: pip install -e '.[{extra}]'"  # there is no released package: an index may hold somebody else's luban


def installing(extra: str) -> str:
    """How an optional extra is installed."""
    return t(INSTALL, extra=extra)


def missing_extra(package: str, extra: str) -> LubanError:
    """The one clear line for an optional package that is not installed."""
    return LubanError(
        "the Python package {package} is not installed",
        "it belongs to the optional extra {extra!r}",
        INSTALL,
        package=package,
        extra=extra,
    )
