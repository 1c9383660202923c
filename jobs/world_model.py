"""How the synthetic platform works: who likes what, what there is to watch, and who watches it when.

Every random draw is a hash of (seed, what is drawn, entity, day). So a user's events depend neither on the partitions
nor on how many users there are, and the catalogue is a formula that each worker evaluates for itself.

A video belongs to a topic, a topic to a category. On a day, a user picks a video with a probability proportional to

    interest in the category  x  taste for the topic  x  appeal of the video  x  its freshness

which is what `affinity` says. The first two are the user's, the last two anybody's; a day's videos lie sorted by topic,
so that a pick is two binary searches, whatever the size of the catalogue.

Times are microseconds since 1970 UTC, days are whole days since 1970; users and videos are known by their index.
What is called fitted was fitted to the marginals of KuaiRand-Pure (Gao et al. 2022, doi:10.1145/3511808.3557624).
"""

from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, softmax

Array = NDArray[Any]

SECOND = 1_000_000
DAY = 86_400 * SECOND
FOREVER = 2**62
EPOCH = date(1970, 1, 1).toordinal()

CATEGORIES, TOPICS_EACH = 20, 6
TOPICS = CATEGORIES * TOPICS_EACH
CATEGORY_ZIPF = 0.95
"""Creators of the category of rank k: k^-0.95. Fitted to the 20 most frequent first tags."""
CREATOR_ZIPF, VIDEOS_PER_CREATOR = 0.35, 4
"""Videos of the creator of rank k: k^-0.35, fitted. (There, a thin sample of what they uploaded, 1.2 a creator.)"""
LOG_SECONDS, SPREAD_OF_CATEGORIES, SPREAD_OF_VIDEOS = 4.23, 0.45, 0.93
"""Durations, fitted: log-normal of median 69 s and total spread 1.03, cut at 5 s and at 20 minutes."""
MEMBER_DAYS, MEMBER_SPREAD = 1204, 680
"""Days that a user has been there before the first one: normal, fitted."""
BACKLOG_DAYS, EMBARGOED, TAKEN_DOWN, LIFE_DAYS, COPIES = 200, 0.02, 0.03, 40, 0.02
"""Mean age of the old videos; shares that go up later than they are uploaded, and that are taken down, after how long
in the mean; share that tries to be a copy (half of them find an older original)."""
FEWEST_ITEMS = 20
"""With fewer, there might be a day with nothing to watch."""

INTEREST_SPREAD = 1.6
"""Spread (standard deviation) of the logarithm of a user's interest in a category."""
TASTE_SIZE, TASTE_SPREAD = 4, 1.4
"""Dimensions of the taste that tells topics apart in all categories, and the spread of the logarithm of its effect."""
CREATOR_APPEAL, VIDEO_APPEAL = 0.8, 1.3
"""Spreads of the two parts of the logarithm of a video's appeal."""
FRESH_BOOST, FRESH_HALF_LIFE = 3.0, 4.0
"""A new video draws 1 + 3 times as much as an old one; the 3 halves every 4 days."""

ACTIVITY_SPREAD, MOST_ACTIVE = 1.1, 40.0
"""Spread of the logarithm of a person's mean watches a day, and the most that it can be."""
WEEK = np.array([0.87, 0.84, 0.86, 0.92, 1.06, 1.27, 1.18])
"""Activity from Monday to Sunday, mean 1."""
REWATCHES, TRIES = 0.03, 5
"""Share of picks that may be of a known video; the others are made again, so often at most, and then given up."""
LIKE_RATE = 0.2
"""Share of likes among videos that were watched to the end."""
BOT_RATE, BOT_TARGETS, BOT_SECONDS = 70.0, 40, 3.0
"""A bot watches the same 40 videos, 70 times a day, at any hour, for 3 s."""

KINDS = ("watch", "like", "impression")
WATCH, LIKE, IMPRESSION = range(3)
SURFACES, SURFACE_SHARES = ("home", "related", "search"), (0.75, 0.10, 0.15)
"""Where a request is made. Only the first shows a list whose impressions are known."""
REQUEST, SLATE, POSITION_BIAS = 4, 20, 0.8
"""Watches that one request leads to, at most; positions in its list; position p is examined in proportion to p^-0.8."""


@dataclass(frozen=True)
class Drift:
    """What goes wrong from a day on. Every switch is off by default."""

    since: date = date(2026, 11, 20)
    """First day of all that follows, UTC. The days before are what they would be without it."""
    interests: float = 0.0
    """Share of users whose interests are drawn anew."""
    popularity: float = 0.0
    """Spread of the logarithm of a factor by which each category's videos gain or lose appeal."""
    lost: float = 0.0
    """Share of event rows that never arrive."""
    milliseconds: bool = False
    """Whether watch time is reported in milliseconds instead of seconds."""
    flood: float = 0.0
    """New users from a new country with a taste of its own: so many for each of World.users, on top of those."""


@dataclass(frozen=True)
class World:
    """A platform. Equal worlds are equal row by row, and another seed is another platform."""

    users: int = 1_000
    """How many, without the flood; more of them leave the first ones as they are."""
    items: int = 500
    """Videos in the catalogue, those that are already taken down or not yet up on the last day among them."""
    days: int = 30
    """Days of events, up to and with `end`."""
    end: date = date(2026, 11, 20)
    """The last day, UTC."""
    seed: int = 7
    """0 or more."""
    impressions: bool = False
    """Whether to write what was shown, too: six rows for every watch. The other rows stay but for their position."""
    events_per_user: float = 50.0
    """Mean watches and likes of a person in 30 days, where nobody runs out of videos: 50 becomes 32 with 500 videos."""
    new_users: float = 0.003
    """Users who join on each day, as a share of all."""
    new_items: float = 0.004
    """Videos that are uploaded on each day, as a share of all."""
    bots: float = 0.002
    """Share of the users that are programs."""
    harmful: float = 0.004
    """Share of the videos that are harmful, and twice as appealing for it."""
    drift: Drift = Drift()
    """What goes wrong, and from when on."""

    def __post_init__(self) -> None:
        if self.users < 1 or self.items < FEWEST_ITEMS or self.days < 1:
            raise ValueError(f"a world needs users, days and {FEWEST_ITEMS} items; this one is {self}")

    @property
    def last(self) -> int:
        """Day number of `end`."""
        return self.end.toordinal() - EPOCH

    @property
    def first(self) -> int:
        """Day number of the first day."""
        return self.last - self.days + 1

    @property
    def drifts(self) -> int:
        """Day number from which on the drift acts."""
        return self.drift.since.toordinal() - EPOCH

    @property
    def everyone(self) -> int:
        """Number of users, with the flood."""
        return self.users + round(self.users * self.drift.flood)


def hashed(*parts: ArrayLike) -> Array:
    """64 bits for each element of the broadcast parts: splitmix64 folded over them. Text enters by its CRC-32."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        number = np.asarray(crc32(part.encode()) if isinstance(part, str) else part).astype(np.uint64)
        state = (state ^ number) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(*parts: ArrayLike) -> Array:
    """Draws strictly between 0 and 1, one for each element of the broadcast parts."""
    return ((hashed(*parts) >> np.uint64(12)) + 0.5) * 2.0**-52


def normal(*parts: ArrayLike) -> Array:
    """Standard normal draws, one for each element of the broadcast parts."""
    return ndtri(uniform(*parts))


def integer(size: int, *parts: ArrayLike) -> Array:
    """Draws from 0 to size - 1, one for each element of the broadcast parts."""
    return (size * uniform(*parts)).astype(np.int64)


def choice(shares: ArrayLike, *parts: ArrayLike) -> Array:
    """Indices into `shares`, drawn in proportion to them, one for each element of the broadcast parts."""
    cumulative = np.cumsum(shares)
    return np.searchsorted(cumulative[:-1] / cumulative[-1], uniform(*parts), side="right")


class Catalogue(NamedTuple):
    """All videos; arrays of shape (items,)."""

    creator: Array
    topic: Array
    appeal: Array
    duration: Array  # seconds
    published: Array
    begins: Array  # available from
    ends: Array  # available until, or FOREVER
    original: Array  # the video that it is a copy of, or itself
    harmful: Array


@lru_cache(maxsize=4)
def catalogue(world: World) -> Catalogue:
    """The whole catalogue; it knows nothing of the users."""
    items = np.arange(world.items)
    draw, bell = partial(uniform, world.seed), partial(normal, world.seed)
    creators = max(1, world.items // VIDEOS_PER_CREATOR)
    creator = (creators * draw("creator", items) ** (1 / (1 - CREATOR_ZIPF))).astype(np.int64)
    published, begins, ends = _lives(world, items)

    source = integer(world.items, world.seed, "source", items)
    copies = draw("copy", items) < COPIES
    original = np.where(copies & ~copies[source] & (published[source] < published), source, items)
    topic = _topics(world, items, creator)[original]
    pace = SPREAD_OF_CATEGORIES * bell("pace", topic // TOPICS_EACH) + SPREAD_OF_VIDEOS * bell("duration", original)
    duration = np.clip(np.exp(LOG_SECONDS + pace), 5, 1200).round(1)

    harmful = draw("harmful", items) < world.harmful
    appeal = np.exp(CREATOR_APPEAL * bell("creator's appeal", creator) + VIDEO_APPEAL * bell("appeal", items))
    appeal *= np.where(harmful, 2, 1)
    return Catalogue(creator, topic, appeal, duration, published, begins, ends, original, harmful)


def _lives(world: World, items: Array) -> tuple[Array, Array, Array]:
    """When each video is uploaded, goes up and is taken down. Uploads: evenly in the world's days, fewer before."""
    draw = partial(uniform, world.seed)
    when = draw("uploaded", items)
    is_new = draw("new video", items) < min(0.5, world.new_items * world.days)
    published = world.first + np.where(is_new, world.days * when, BACKLOG_DAYS * np.log(when))
    begins = published + np.where(draw("embargo", items) < EMBARGOED, 1 + 9 * draw("embargo's days", items), 0)
    life = np.where(draw("taken down", items) < TAKEN_DOWN, -LIFE_DAYS * np.log(draw("life", items)), np.inf)
    ends = np.minimum((begins + life) * DAY, FOREVER)
    return (published * DAY).astype(np.int64), (begins * DAY).astype(np.int64), ends.astype(np.int64)


def _topics(world: World, items: Array, creator: Array) -> Array:
    """Creators keep to a category, and for four videos in five to a topic."""
    shares = np.arange(1, CATEGORIES + 1) ** -CATEGORY_ZIPF
    home = integer(TOPICS_EACH, world.seed, "home topic", creator)
    away = integer(TOPICS_EACH, world.seed, "away topic", items)
    strays = uniform(world.seed, "strays", items) < 0.2
    return choice(shares, world.seed, "category", creator) * TOPICS_EACH + np.where(strays, away, home)


def topic_tastes(world: World) -> Array:
    """Where the topics lie in the space of tastes; (topics, TASTE_SIZE)."""
    places = normal(world.seed, "topic's taste", np.arange(TOPICS)[:, None], np.arange(TASTE_SIZE))
    return places * TASTE_SPREAD / TASTE_SIZE**0.5


def attraction(world: World, day: int) -> Array:
    """What draws anybody to each video on that day: appeal x freshness, and 0 where it is not up; (items,)."""
    videos = catalogue(world)
    age = np.maximum(0, day + 0.5 - videos.begins / DAY)
    present = (videos.begins < (day + 1) * DAY) & (videos.ends > day * DAY)
    pull = present * videos.appeal * (1 + FRESH_BOOST * 0.5 ** (age / FRESH_HALF_LIFE))
    if day >= world.drifts:
        pull *= np.exp(world.drift.popularity * normal(world.seed, "fashion", videos.topic // TOPICS_EACH))
    return pull


class Market(NamedTuple):
    """The videos of one day, sorted by topic."""

    items: Array  # (items,)
    bounds: Array  # (topics + 1,): topic t is items[bounds[t]:bounds[t + 1]]
    cumulative: Array  # (items + 1,): the attraction of all videos before

    def pick(self, low: Array | int, high: Array | int, draws: Array) -> Array:
        """A video of items[low:high] for each draw, in proportion to attraction."""
        start, stop = self.cumulative[low], self.cumulative[high]
        place = np.searchsorted(self.cumulative, start + draws * (stop - start), side="right") - 1
        return self.items[np.clip(place, low, np.asarray(high) - 1)]

    def pick_any(self, draws: Array) -> Array:
        """A video for each draw, in proportion to attraction, whatever its topic."""
        return self.pick(0, len(self.items), draws)


@lru_cache(maxsize=100)
def market(world: World, day: int) -> Market:
    """The market of that day. Kept in each worker: 8 bytes a video and day."""
    items = _by_topic(world)
    bounds = np.searchsorted(catalogue(world).topic[items], np.arange(TOPICS + 1))
    return Market(items, bounds, np.append(0, np.cumsum(attraction(world, day)[items])))


@lru_cache(maxsize=4)
def _by_topic(world: World) -> Array:
    return np.argsort(catalogue(world).topic, kind="stable")


class People(NamedTuple):
    """Some users; arrays of shape (n,), (n, CATEGORIES) or (n, TASTE_SIZE)."""

    user: Array  # index
    flood: Array  # whether they came with the drift
    created: Array
    is_bot: Array
    activity: Array  # mean watches a day
    interests: Array  # rows sum to 1
    interests_after: Array  # since the drift; the same for most
    taste: Array

    def weights(self, world: World) -> Array:
        """Interest x taste of each user in each topic, before the drift and since; (2, n, topics)."""
        # Not a matrix product: its rounding depends on the shape, and so a user's events would on the other users.
        likings = sum(self.taste[:, [axis]] * places for axis, places in enumerate(topic_tastes(world).T))
        interests = np.stack([self.interests, self.interests_after])
        return np.repeat(interests, TOPICS_EACH, axis=2) * np.exp(likings)


def people(world: World, index: Array) -> People:
    """The users of these indices."""
    draw, bell = partial(uniform, world.seed), partial(normal, world.seed)
    flood = index >= world.users
    is_bot = draw("bot", index) < world.bots
    activity = np.exp(ACTIVITY_SPREAD * bell("activity", index) - ACTIVITY_SPREAD**2 / 2) * world.events_per_user / 30

    member, categories = index[:, None], np.arange(CATEGORIES)
    abroad = flood[:, None] * bell("interests abroad", categories)
    interests = softmax(INTEREST_SPREAD * (bell("interests", member, categories) + abroad), axis=1)
    others = softmax(INTEREST_SPREAD * bell("other interests", member, categories), axis=1)
    changes = (draw("changes", member) < world.drift.interests) & ~flood[:, None]
    return People(
        user=index,
        flood=flood,
        created=_joined(world, index, flood),
        is_bot=is_bot,
        activity=np.where(is_bot, BOT_RATE, np.minimum(activity, MOST_ACTIVE)),
        interests=interests,
        interests_after=np.where(changes, others, interests),
        taste=bell("taste", member, np.arange(TASTE_SIZE)),
    )


def _joined(world: World, index: Array, flood: Array) -> Array:
    """When each user joined: evenly in the world's days, or long before; the flood evenly since the drift."""
    when = uniform(world.seed, "joined", index)
    is_new = uniform(world.seed, "new user", index) < min(0.5, world.new_users * world.days)
    long_before = -np.abs(MEMBER_DAYS + MEMBER_SPREAD * ndtri(when))
    since = max(world.first, world.drifts)
    day = world.first + np.where(is_new, world.days * when, long_before)
    return (np.where(flood, since + when * (world.last + 1 - since), day) * DAY).astype(np.int64)


def runs(column: Array) -> tuple[Array, Array, Array]:
    """Where equal values lie together: each row's number in its run, its run's number, and each run's first row."""
    first = np.ones(len(column), dtype=bool)
    first[1:] = column[1:] != column[:-1]
    starts, run = np.flatnonzero(first), np.cumsum(first) - 1
    return np.arange(len(column)) - starts[run], run, starts


def affinity(world: World, users: Array, items: Array, day: date) -> Array:
    """How likely each user is to pick each video on that day, up to a factor a user; (users, items), by their indices.

    0 where the video is not up. What a person does not know yet, sorted by it, is the ideal list. Bots have none.
    """
    number = day.toordinal() - EPOCH
    weights = people(world, users).weights(world)[int(number >= world.drifts)]
    return weights[:, catalogue(world).topic[items]] * attraction(world, number)[items]
