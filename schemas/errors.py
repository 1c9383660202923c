"""The few errors of Nightlist. Each answers: what is wrong, where, what to type next, and with which code the command ends.

| exit code | meaning |
| --- | --- |
| 0 | done; for a night: its run is LIVE |
| 1 | everything else, bad input included |
| 2 | usage or configuration |
| 3 | refused: the gate stopped the run, or it may not be published |
| 4 | another night or publisher is at work |
| 5 | the store can't be reached or was lost during a load; a retry loads only |
"""


class NightlistError(Exception):
    """Base of all: `exit_code` for the command line, `retry` says whether the same command may succeed later.

    `state` is the state that a run was left in, where a run is what failed and its state is known.
    """

    exit_code = 1
    retry = False
    state: str | None = None


class InputError(NightlistError):
    """The data can't be used: a missing table or column, an unreadable file, a day without events."""


class ConfigError(NightlistError):
    """The command line or nightlist.toml can't be used."""

    exit_code = 2


class Refused(NightlistError):
    """A run may not be published: its gate said stop, or its state forbids it."""

    exit_code = 3


class Busy(NightlistError):
    """Somebody else holds the run's lock or the store's lease."""

    exit_code = 4
    retry = True


class StaleFence(Busy):
    """A newer lease exists: whoever held the older one must write no more."""


class SequenceMoved(Busy):
    """The release pointer moved since it was read: somebody else published."""


class IllegalTransition(Refused):
    """The table of transitions does not allow this change of state, or the run was not in the state expected."""


class StoreUnavailable(NightlistError):
    """The store can't be reached, is full, or answers with an error of its own."""

    exit_code = 5
    retry = True


class RunUnreadable(NightlistError):
    """A run's lists are missing from the store or can't be read: readers keep the run that they have."""
