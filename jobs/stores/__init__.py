"""Store writers: the primitives of publication, one file a store; `lookup_api/readers/X.py` reads what X writes.

The order in which they are called, and what a crash between two of them means, belongs to `jobs/stages/publish.py`.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from jobs.lists import Write
from lookup_api.readers import implementation
from schemas.lists import ServedList
from schemas.runs import Lease, Release, RunRecord, RunState
from schemas.settings import StoreSettings


class Lists(Protocol):
    """The lists of one run, to be loaded: all in a row, or in parts by several processes."""

    def __iter__(self) -> Iterator[ServedList]:
        """Every list once."""

    def each_part(self, write: Write, into: str, progress: Callable[[int], None]) -> int:
        """`write` (which travels to other processes: a module's function, or a partial) on all parts that were not yet
        written whole into what `into` names, several at once where there are workers. Returns the rows of all parts,
        those written before too; `progress` is told the sum so far, every now and then.
        """


class Store(Protocol):
    """Writes to one store.

    A call that takes a `fence` raises StaleFence when a lease with a higher one was ever granted. Every method raises
    StoreUnavailable when the store can't be reached or is full.
    """

    def create(self) -> None:
        """Make the place that holds it all, as its administrator, and prepare it; idempotent."""

    def prepare(self) -> None:
        """Make what the registry needs, where it is missing; idempotent."""

    def acquire(self, owner: str, ttl: float) -> Lease:
        """The publisher's lease for `ttl` seconds, with a fence above every earlier one. Raises LeaseHeld, which names
        the holder and the expiry, while another lease (of whatever owner) is neither released nor expired."""

    def renew(self, lease: Lease, ttl: float) -> Lease:
        """The same lease, `ttl` seconds from now. Raises StaleFence when it was superseded or released."""

    def release(self, lease: Lease) -> None:
        """End the lease; without effect when it was superseded."""

    def holder(self) -> Lease | None:
        """The lease that was granted last, where it was not given back; it may be over."""

    def runs(self) -> list[RunRecord]:
        """All runs that the store knows, newest name first; none where it was never prepared."""

    def pointer(self) -> Release | None:
        """The release pointer, read as strongly as the store can; None where it was never prepared."""

    def set_state(self, run_id: str, old: RunState | None, new: RunState, fence: int, rows: int | None = None) -> None:
        """Compare-and-set of the run's state; `old` None registers a run (only as LOADING). `rows` is kept where given.

        Raises IllegalTransition when the run is not in `old` or the table of transitions forbids the change.
        """

    def load(self, run_id: str, lists: Lists, fence: int, progress: Callable[[int], None], resume: bool = False) -> int:
        """Write all lists of a LOADING run into its own, new table, and return how many rows it has now.

        What an earlier load of the run left is dropped first; with `resume` a store that can goes on with it instead, and
        writes what is missing. `progress` is told rows written so far.
        Raises IllegalTransition unless the run is LOADING; ValueError on a (kind, key) given twice in a part and on what
        is no list (see `schemas.lists.check_list`). A load that raises leaves nothing, but for StoreUnavailable.
        """

    def flip(self, run_id: str, expected_sequence: int, fence: int) -> Release:
        """Point the release at `run_id` by compare-and-set; `expected_sequence` is 0 before the first publication.

        `previous` becomes what was pointed at before, and that run's `changed_at` the time of the flip. Raises
        SequenceMoved when the sequence is another one; IllegalTransition unless the run is VERIFIED, LIVE or RETIRED:
        only those were read back.
        """

    def drop(self, run_id: str, fence: int) -> None:
        """Drop the run's table, whole, and forget the run, unless it is BAD: that is remembered for ever.

        Without effect where there is none. Raises IllegalTransition for the run that the pointer names, and unless the
        run is FAILED or BAD: one that could still be served becomes FAILED first.
        """

    def size(self, run_id: str) -> int | None:
        """Bytes that the run's lists take on disk, by the store's own accounts; None where it may not say."""

    def close(self) -> None:
        """Give connections back."""


def open_store(settings: StoreSettings) -> Store:
    """The writer of the configured store. Opening reaches for nothing; call `prepare` first."""
    store: Store = implementation("jobs.stores", settings.backend).open_store(settings)
    return store
