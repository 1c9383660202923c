"""Stage 6: the lists to serve. What a user has seen, what is blocked and what is unavailable never passes here."""

from functools import partial
from pathlib import Path

import pyarrow as pa

from jobs.buckets import Buckets, read_bucket
from jobs.candidates import Entries, rank_within
from jobs.dataset import Dataset
from jobs.models import Users
from jobs.run import Counts


def rules(out: Path, buckets: Buckets, dataset: Path, ranked: Path, n: int) -> Counts:
    """Write each user's list of at most n items."""
    return {"rows": buckets.each(out, partial(bucket_lists, dataset, ranked, n))}


def bucket_lists(dataset: Path, ranked: Path, n: int, bucket: int) -> pa.Table:
    """The lists of one bucket."""
    user_ids, users = Dataset(dataset).bucket(bucket)
    return shorten(allowed(Entries.of(read_bucket(ranked, bucket)), users), n).table(user_ids)


def allowed(entries: Entries, users: Users) -> Entries:
    """The entries that their user may be shown: the same predicate that retrieve applied, once more to the merged list."""
    return entries.take(users.may_get(entries.row, entries.items))


def shorten(entries: Entries, n: int) -> Entries:
    """The first n entries of each user, ranked anew."""
    ranks = rank_within(entries.row)
    return Entries(
        entries.users, entries.row, entries.items, entries.scores, ranks, entries.sources, entries.names
    ).take(ranks <= n)
