"""What happens on the synthetic platform, and when: watches, likes, and what was shown. Who and what there is stands in `world_model`."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from jobs.world_model import (
    BOT_SECONDS,
    BOT_TARGETS,
    CATEGORIES,
    DAY,
    IMPRESSION,
    LIKE,
    LIKE_RATE,
    POSITION_BIAS,
    REQUEST,
    REWATCHES,
    SECOND,
    SLATE,
    SURFACE_SHARES,
    TRIES,
    WATCH,
    WEEK,
    Array,
    People,
    World,
    catalogue,
    choice,
    hashed,
    integer,
    market,
    normal,
    runs,
    uniform,
)


class Rows(NamedTuple):
    """Events in the making, one array a column."""

    viewer: Array  # row of People
    item: Array
    kind: Array  # index into KINDS
    ts: Array
    seconds: Array  # watched
    position: Array  # from 1; 0 is none
    day: Array
    request: Array  # number within the viewer's day
    opened: Array  # when the request was made
    key: Array  # hash from which further draws about the event start

    def take(self, which: Array) -> "Rows":
        """The rows of a mask or of indices."""
        return Rows(*(column[which] for column in self))


def happenings(world: World, viewers: People) -> Rows:
    """All events of these users, sorted by viewer and time."""
    watches = _watches(world, viewers)
    parts = [watches, _likes(world, watches)]
    if world.impressions:
        parts[0], shown = _shown(world, viewers, watches)
        parts.append(shown)
    rows = Rows(*map(np.concatenate, zip(*parts, strict=True)))
    rows = _arrived(world, rows.take(_possible(world, viewers, rows)))
    return rows.take(np.lexsort((rows.position, rows.ts, rows.viewer)))


def _watches(world: World, viewers: People) -> Rows:
    """All watches, sorted by viewer and time."""
    viewer, day, number = _occasions(world, viewers)
    key = hashed(world.seed, "watch", viewers.user[viewer], day, number)
    weights = viewers.weights(world)
    item = _picks(world, viewers, weights, viewer, day, key)

    viewer, day, key, item = (column[item >= 0] for column in (viewer, day, key, item))
    late = (day >= world.drifts).astype(np.int64)
    liking = weights[late, viewer, catalogue(world).topic[item]]
    seconds = np.where(viewers.is_bot[viewer], BOT_SECONDS, _seconds(world, item, liking, key))
    ts, request, opened = _schedule(world, viewers, viewer, day, seconds, key)
    zero = np.zeros_like(item)
    rows = Rows(viewer, item, zero + WATCH, ts, seconds, zero, day, request, opened, key)
    return rows.take(_possible(world, viewers, rows))


def _occasions(world: World, viewers: People) -> tuple[Array, Array, Array]:
    """When somebody wants to watch something: viewer, day, and number within that day, in this order."""
    days = np.arange(world.first, world.last + 1)
    rhythm = np.where(viewers.is_bot[:, None], 1.0, WEEK[(days + 3) % 7])
    joined = viewers.created[:, None] < (days + 1) * DAY
    rate = np.maximum(viewers.activity[:, None] * rhythm * joined, 1e-9)
    # Geometric rather than Poisson: people have days off and long evenings.
    draws = uniform(world.seed, "occasions", viewers.user[:, None], days)
    counts = (np.log(draws) / np.log1p(-1 / (1 + rate))).astype(np.int64).ravel()
    cell = np.repeat(np.arange(len(counts)), counts)
    return cell // world.days, days[cell % world.days], runs(cell)[0]


def _picks(world: World, viewers: People, weights: Array, viewer: Array, day: Array, key: Array) -> Array:
    """The video of each occasion. Who knows it already looks for another, and in the end for none: -1."""
    is_bot = viewers.is_bot[viewer]
    target = integer(BOT_TARGETS, key, "target")
    item = integer(world.items, world.seed, "target", viewers.user[viewer], target)
    content = is_bot | (uniform(key, "rewatch") < REWATCHES)
    todo = np.flatnonzero(~is_bot)
    for attempt in range(TRIES):
        item[todo] = _drawn(world, weights, viewer[todo], day[todo], hashed(key[todo], attempt))
        known = np.ones(len(item), dtype=bool)
        known[np.unique(viewer * world.items + item, return_index=True)[1]] = False
        todo = np.flatnonzero(known & ~content)
    item[todo] = -1
    return item


def _drawn(world: World, weights: Array, viewer: Array, day: Array, key: Array) -> Array:
    """A video for each row, by affinity: first its topic, then itself."""
    topic_draws, item_draws = uniform(key, "topic"), uniform(key, "item")
    item = np.zeros(len(viewer), dtype=np.int64)
    for today in np.unique(day).tolist():
        shop, here = market(world, today), np.flatnonzero(day == today)
        present, row = np.unique(viewer[here], return_inverse=True)
        mass = np.diff(shop.cumulative[shop.bounds])
        cumulative = np.cumsum(weights[int(today >= world.drifts), present] * mass, axis=1)
        topic = _columns(cumulative / cumulative[:, -1:], row, topic_draws[here])
        item[here] = shop.pick(shop.bounds[topic], shop.bounds[topic + 1], item_draws[here])
    return item


def _columns(cumulative: Array, row: Array, draws: Array) -> Array:
    """A column for each draw, from its row of `cumulative` (which ends at 1): one search, exact because in integers."""
    scale, columns = 2**40, cumulative.shape[1]
    steps = (cumulative * scale).astype(np.int64) + scale * np.arange(len(cumulative))[:, None]
    return np.searchsorted(steps.ravel(), (draws * scale).astype(np.int64) + scale * row, side="right") - columns * row


def _seconds(world: World, item: Array, liking: Array, key: Array) -> Array:
    """Seconds watched, in tenths: the better the topic suits the viewer, the more of the video."""
    suits = 0.4 * np.log(CATEGORIES * liking)
    share = expit(suits - 0.6 + 1.2 * normal(key, "completion"))
    return np.maximum(0.5, catalogue(world).duration[item] * share).round(1)


def _schedule(
    world: World, viewers: People, viewer: Array, day: Array, seconds: Array, key: Array
) -> tuple[Array, Array, Array]:
    """When each watch begins, its request's number, and when that was made: one sitting a day, watch after watch."""
    number, sitting, starts = runs(viewer * world.days + day - world.first)
    pause = ((2 + 20 * uniform(key, "pause")) * SECOND).astype(np.int64)
    passed = np.append(0, np.cumsum(pause + (seconds * SECOND).astype(np.int64)))
    length = np.diff(passed[np.append(starts, len(viewer))])
    share = _hours(world, viewers, viewer[starts], day[starts]) / 24
    begin = day[starts] * DAY + (share * np.maximum(0, DAY - length)).astype(np.int64) - passed[starts]
    request = number // REQUEST
    opened = begin[sitting] + passed[starts[sitting] + request * REQUEST]
    return begin[sitting] + passed[:-1] + pause, request, opened


def _hours(world: World, viewers: People, viewer: Array, day: Array) -> Array:
    """When the viewer sits down that day, in hours: around an hour of their own, most in the evening; bots at any."""
    user = viewers.user[viewer]
    hours = 20 + 4 * normal(world.seed, "usual hour", user) + 2 * normal(world.seed, "hour", user, day)
    return np.where(viewers.is_bot[viewer], 24 * uniform(world.seed, "bot's hour", user, day), hours % 24)


def _possible(world: World, viewers: People, rows: Rows) -> Array:
    """Whether viewer and video were there and the day not over; (rows,) of bool."""
    videos = catalogue(world)
    begins = np.maximum(videos.begins[rows.item], viewers.created[rows.viewer])
    ends = np.minimum(videos.ends[rows.item], (rows.day + 1) * DAY)
    return (begins <= rows.opened) & (rows.ts < ends)


def _likes(world: World, watches: Rows) -> Rows:
    """The likes, given when a watch ends, the likelier the more was seen of the video."""
    share = watches.seconds / catalogue(world).duration[watches.item]
    liked = watches.take(uniform(watches.key, "like") < LIKE_RATE * share**2)
    ends = liked.ts + (liked.seconds * SECOND).astype(np.int64)
    return liked._replace(kind=liked.kind + LIKE, ts=ends, seconds=np.full(len(ends), np.nan))


def request_keys(world: World, viewers: People, rows: Rows) -> Array:
    """A hash of each row's request; (rows,)."""
    return hashed(world.seed, "request", viewers.user[rows.viewer], rows.day, rows.request)


def surfaces(keys: Array) -> Array:
    """The surface on which each request was made, by its key: an index into SURFACES."""
    return choice(SURFACE_SHARES, keys, "surface")


def _shown(world: World, viewers: People, watches: Rows) -> tuple[Rows, Rows]:
    """The watches with their positions, and the impressions.

    A video that was watched stood at position p with a probability in proportion to p^-POSITION_BIAS, whatever it is.
    Around it the list shows what is popular on that day.
    """
    keys = request_keys(world, viewers, watches)
    listed = np.flatnonzero(surfaces(keys) == 0)
    home = watches.take(listed)
    number, request, heads = runs(keys[listed])
    keys, slots = keys[listed][heads][:, None], np.arange(SLATE)

    # The smallest of exponential draws, each divided by its weight: a weighted sample without replacement.
    race = -np.log(uniform(keys, "slot", slots)) * (slots + 1.0) ** POSITION_BIAS
    slot = np.argsort(race, axis=1)[request, number]
    slates = _popular(world, home.day[heads], uniform(keys, "shown", slots))
    slates[request, slot] = home.item
    watched = np.zeros(slates.shape, dtype=bool)
    watched[request, slot] = True
    position = watches.position.copy()
    position[listed] = slot + 1

    row, column = np.nonzero(watched | ~_repeated(slates, watched))
    base, none = home.take(heads[row]), np.full(len(row), np.nan)
    impressions = base._replace(
        item=slates[row, column],
        kind=np.full(len(row), IMPRESSION),
        ts=base.opened,
        seconds=none,
        position=column + 1,
        key=hashed(keys[row, 0], column),
    )
    return watches._replace(position=position), impressions


def _popular(world: World, days: Array, draws: Array) -> Array:
    """Videos by the attraction of each row's day alone; like draws, (rows, SLATE)."""
    items = np.zeros(draws.shape, dtype=np.int64)
    for day in np.unique(days).tolist():
        items[days == day] = market(world, day).pick_any(draws[days == day])
    return items


def _repeated(slates: Array, watched: Array) -> Array:
    """Whether a video stands in its slate already, or is watched elsewhere in it; bool, like slates."""
    order = np.argsort(2 * slates + ~watched, axis=1, kind="stable")
    ordered = np.take_along_axis(slates, order, axis=1)
    repeated = np.zeros(slates.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated


def _arrived(world: World, rows: Rows) -> Rows:
    """What reaches the log, and how it is reported, when the drift is in the reporting."""
    late = rows.day >= world.drifts
    unit = np.where(late & world.drift.milliseconds, 1000, 1)
    lost = late & (uniform(rows.key, "lost", rows.kind) < world.drift.lost)
    return rows._replace(seconds=rows.seconds * unit).take(~lost)
