"""A video platform whose truth is known, of any size: its events, catalogue, users and blocks, as Parquet.

    generate(spark, World(users=100_000, items=20_000), Path("data"))

Spark makes blocks of users (or videos) in the workers from their numbers alone; nothing is broadcast or shuffled. How
the platform works is told in `world_model`; here is what is written about it. No row and no word comes from real data.
"""

from collections.abc import Callable, Iterator
from datetime import date
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.world_model import (
    EPOCH,
    FOREVER,
    KINDS,
    LIKE,
    SURFACES,
    TOPICS_EACH,
    WATCH,
    Array,
    Catalogue,
    Drift,
    World,
    affinity,
    catalogue,
    choice,
    happenings,
    hashed,
    integer,
    market,
    normal,
    people,
    request_keys,
    surfaces,
    topic_tastes,
    uniform,
)
from schemas.columns import BLOCKS_TABLE, EVENTS_TABLE, ITEMS_TABLE, USERS_TABLE, InputTable

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Drift", "World", "affinity", "generate", "item_ids", "user_ids"]

BLOCK = 1_024
"""Users or videos made at a time: what bounds a worker's memory, next to the catalogue."""
ROWS_A_FILE = 1_000_000

Columns = dict[str, Any]
"""Names to arrays (of Arrow or numpy) or lists, all of one length."""
TIME = pa.timestamp("us", tz="UTC")

COUNTRIES, COUNTRY_SHARES = ("US", "BR", "DE", "FR", "MX", "JP"), (0.35, 0.20, 0.15, 0.12, 0.10, 0.08)
NEW_COUNTRY = "ID"
"""Where the flood of World.drift comes from."""
LANGUAGES, LANGUAGE_SHARES = ("en", "es", "pt", "de", "fr", "ja"), (0.60, 0.12, 0.10, 0.07, 0.06, 0.05)
MIN_AGES, MIN_AGE_SHARES = np.array([0, 13, 18]), (0.95, 0.03, 0.02)
BIRTH_YEAR, BIRTH_SPREAD, AGE_UNTOLD = 1996, 11, 0.05
STYLES = ("tutorial", "vlog", "review", "live", "short", "classic")
SECOND_TAG = 0.24
"""Share of videos with a second tag, their style. Fitted; the first one is the topic."""
LABELLED = 0.6
"""Share of the harmful videos that carry the label; truth_items knows all."""
USERS_WHO_BLOCK, BANNED = 0.05, 0.002
"""Share of users who blocked a video, and of videos that nobody may be shown."""


def generate(spark: "SparkSession", world: World, folder: Path, files: int = 0) -> dict[str, int]:
    """Write folder/events, items, users, blocks, truth_users and truth_items; how many rows each has.

    Within a file, and from file to file, events are sorted by user and time. `files` (a table; 0: by its size) is the
    unit of work and changes no row. Workers write the files themselves, so they must share `folder`.
    """
    return {table.name: _written(spark, world, table, folder.absolute() / table.name, files) for table in TABLES}


def user_ids(index: Array) -> pa.Array:
    """u0000042 for 42."""
    return pa.array([f"u{i:07d}" for i in index.tolist()], pa.string())


def item_ids(index: Array) -> pa.Array:
    """v000123 for 123."""
    return pa.array([f"v{i:06d}" for i in index.tolist()], pa.string())


def _events(world: World, index: Array) -> Columns:
    viewers = people(world, index)
    rows = happenings(world, viewers)
    user = user_ids(index).take(rows.viewer)
    return {
        "user_id": user,
        "item_id": _all_item_ids(world).take(rows.item),
        "event": pa.array(KINDS).take(rows.kind),
        "ts": _times(rows.ts),
        "value": pa.array(rows.seconds, mask=rows.kind != WATCH),
        "surface": pa.array(SURFACES).take(surfaces(request_keys(world, viewers, rows))),
        "position": pa.array(rows.position, pa.int32(), mask=(rows.position == 0) | (rows.kind == LIKE)),
        "request_id": pc.binary_join_element_wise(
            user, _dates(world).take(rows.day - world.first), pa.array(rows.request).cast(pa.string()), "-"
        ),
    }


def _dates(world: World) -> pa.Array:
    """The world's days as yyyymmdd."""
    days = range(world.first, world.last + 1)
    return pa.array([f"{date.fromordinal(EPOCH + day):%Y%m%d}" for day in days])


@lru_cache(maxsize=4)
def _all_item_ids(world: World) -> pa.Array:
    return item_ids(np.arange(world.items))


def _items(world: World, index: Array) -> Columns:
    videos = _videos(world, index)
    spelling = hashed(world.seed, "title", videos.original).tolist()
    topics = [TOPIC_NAMES[number] for number in videos.topic.tolist()]
    creators = [f"{_name(creator).lower()}_{creator}" for creator in videos.creator.tolist()]
    styles = [STYLES[style] for style in integer(len(STYLES), world.seed, "style", index)]
    tagged = uniform(world.seed, "second tag", index) < SECOND_TAG
    labelled = videos.harmful & (uniform(world.seed, "label", index) < LABELLED)
    return {
        "item_id": item_ids(index),
        "title": list(map(title, videos.topic.tolist(), videos.creator.tolist(), spelling)),
        "description": [f"{topic}, {area}, by {by}" for (area, topic), by in zip(topics, creators, strict=True)],
        "creator": creators,
        "category": [category for category, _ in topics],
        "tags": [[t, style][: 1 + two] for (_, t), style, two in zip(topics, styles, tagged, strict=True)],
        "published_at": _times(videos.published),
        "available_from": _times(videos.begins),
        "available_until": _times(videos.ends, videos.ends == FOREVER),
        "min_age": MIN_AGES[choice(MIN_AGE_SHARES, world.seed, "min age", index)],
        "canonical_id": pc.if_else(videos.original == index, None, item_ids(videos.original)),
        "image_phash": [f"{bits:016x}" for bits in hashed(world.seed, "image", videos.original).tolist()],
        "duration_s": videos.duration,
        "language": pa.array(LANGUAGES).take(choice(LANGUAGE_SHARES, world.seed, "language", videos.creator)),
        "labels": [["harmful"] if yes else [] for yes in labelled],
    }


def _videos(world: World, index: Array) -> Catalogue:
    return Catalogue(*(column[index] for column in catalogue(world)))


def _users(world: World, index: Array) -> Columns:
    viewers = people(world, index)
    born = BIRTH_YEAR + BIRTH_SPREAD * normal(world.seed, "born", index)
    untold = uniform(world.seed, "untold", index) < AGE_UNTOLD
    country = np.where(viewers.flood, len(COUNTRIES), choice(COUNTRY_SHARES, world.seed, "country", index))
    return {
        "user_id": user_ids(index),
        "country": pa.array((*COUNTRIES, NEW_COUNTRY)).take(country),
        "birth_year": pa.array(np.clip(born, 1935, 2014).astype(np.int32), mask=untold),
        "created_at": _times(viewers.created),
    }


def _blocks(world: World, index: Array) -> Columns:
    """What some users don't want to see again, popular as it is; with the first user comes what nobody may see."""
    users = index[uniform(world.seed, "blocks", index) < USERS_WHO_BLOCK]
    theirs = market(world, world.last).pick_any(uniform(world.seed, "blocked", users))
    everything = np.arange(world.items if 0 in index else 0)
    banned = everything[uniform(world.seed, "banned", everything) < BANNED]
    return {
        "item_id": item_ids(np.append(theirs, banned)),
        "user_id": pa.concat_arrays([user_ids(users), pa.nulls(len(banned), pa.string())]),
        "reason": ["user"] * len(theirs) + ["legal"] * len(banned),
    }


def _truth_users(world: World, index: Array) -> Columns:
    viewers = people(world, index)
    same = (viewers.interests == viewers.interests_after).all(axis=1)
    return {
        "user_id": user_ids(index),
        "interests": _lists(viewers.interests),
        "interests_after": pc.if_else(same, None, _lists(viewers.interests_after)),
        "taste": _lists(viewers.taste),
        "activity": viewers.activity,
        "is_bot": viewers.is_bot,
    }


def _truth_items(world: World, index: Array) -> Columns:
    videos = _videos(world, index)
    return {
        "item_id": item_ids(index),
        "category": videos.topic // TOPICS_EACH,
        "topic": videos.topic,
        "taste": _lists(topic_tastes(world)[videos.topic]),
        "appeal": videos.appeal,
        "is_harmful": videos.harmful,
    }


def _times(micros: Array, null: Array | None = None) -> pa.Array:
    return pa.array(micros, TIME, mask=null)


def _lists(rows: Array) -> pa.Array:
    """(n, k) doubles as n lists of k."""
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))


class Table(NamedTuple):
    """One table: what makes its columns for a range of entities, and their types."""

    name: str
    make: Callable[[World, Array], Columns]
    schema: pa.Schema
    of_items: bool = False  # entities are videos; else users

    def batch(self, world: World, index: Array) -> pa.RecordBatch:
        """The rows of these entities."""
        return pa.RecordBatch.from_pydict(self.make(world, index), schema=self.schema)


TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "double": pa.float64(),
    "timestamp": TIME,
    "array<string>": pa.list_(pa.string()),
}
"""What Spark's types are called here."""


def _schema(table: InputTable) -> pa.Schema:
    return pa.schema([(column.name, TYPES[column.type]) for column in table.columns])


VECTOR = pa.list_(pa.float64())
TRUTH_USERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("interests", VECTOR),  # by category; a row sums to 1
        ("interests_after", VECTOR),  # since the drift; null where it is the same
        ("taste", VECTOR),
        ("activity", pa.float64()),  # mean watches a day
        ("is_bot", pa.bool_()),
    ]
)
TRUTH_ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("category", pa.int32()),
        ("topic", pa.int32()),
        ("taste", VECTOR),  # of the topic
        ("appeal", pa.float64()),
        ("is_harmful", pa.bool_()),
    ]
)
TABLES = (
    Table("events", _events, _schema(EVENTS_TABLE)),
    Table("items", _items, _schema(ITEMS_TABLE), of_items=True),
    Table("users", _users, _schema(USERS_TABLE)),
    Table("blocks", _blocks, _schema(BLOCKS_TABLE)),
    Table("truth_users", _truth_users, TRUTH_USERS),
    Table("truth_items", _truth_items, TRUTH_ITEMS, of_items=True),
)


def _written(spark: "SparkSession", world: World, table: Table, folder: Path, files: int) -> int:
    """Write one table, in so many files or as many as suit its size; its number of rows."""
    size = world.items if table.of_items else world.everyone
    rows = size * world.events_per_user * (7 if world.impressions else 1) if table.name == "events" else size
    bounds = np.linspace(0, size, 1 + (files or 1 + round(rows / ROWS_A_FILE))).astype(int).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    tasks = [(folder / f"part-{part:05d}.parquet", *ends) for part, ends in enumerate(pairwise(bounds))]
    return spark.sparkContext.parallelize(tasks, len(tasks)).map(partial(_write, world, table)).sum()


def _write(world: World, table: Table, task: tuple[Path, int, int]) -> int:
    """Write one file, block by block; its number of rows."""
    path, low, high = task
    count = 0
    with pq.ParquetWriter(path, table.schema, compression="zstd") as file:
        for start in range(low, high, BLOCK):
            batch = table.batch(world, np.arange(start, min(high, start + BLOCK)))
            file.write_batch(batch)
            count += batch.num_rows
    return count


def title(topic: int, creator: int, number: int) -> str:
    """A title that only a video of that topic can have, spelled by a number of 64 bits; it names creator and topic."""
    number, subject = divmod(number, len(SUBJECTS[topic]))
    number, frame = divmod(number, len(FRAMES))
    words = FRAMES[frame].format(SUBJECTS[topic][subject])
    tag = TOPIC_NAMES[topic][1].replace(" ", "")
    return f"{words[0].upper()}{words[1:]}, {TWISTS[number % len(TWISTS)]} | {_name(creator)} #{tag}"


def _name(creator: int) -> str:
    """A creator's first name; many share one."""
    return NAMES[creator % len(NAMES)]


NAMES = (
    "Ana", "Ben", "Chidi", "Dana", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lena", "Mira", "Nils",
    "Olga", "Pavel", "Quentin", "Rosa", "Sami", "Tove", "Uma", "Viktor", "Wanda", "Xenia", "Yusuf", "Zoe", "Aiko",
    "Bram", "Carmen", "Dario", "Esi", "Farah", "Goran", "Hana", "Ivo", "Jules", "Kofi", "Lior", "Maeve", "Noor",
    "Oskar", "Priya", "Rafa", "Sol",
)  # fmt: skip
FRAMES = (
    "{}", "{}", "{} explained", "how I fell for {}", "{}: what I learned", "the truth about {}", "my week with {}",
    "everything about {}", "a closer look at {}", "{}, honestly", "the joy of {}", "the best of {}",
    "in praise of {}",
)  # fmt: skip
TWISTS = (
    "part 1", "part 2", "part 3", "the sequel", "step by step", "in one take", "on a budget", "the slow way", "live",
    "no talking", "in ten minutes", "before breakfast", "after midnight", "uncut", "with mistakes", "a year later",
    "from scratch", "at last", "the hard way", "with my sister", "in the rain", "as never before", "again", "day 1",
    "day 30", "the finale", "up close",
)  # fmt: skip

VOCABULARY = """
comedy
    sketches: the world's worst waiter, office bingo, a very polite robbery, the haunted printer
    stand-up: jokes about airports, a bit on in-laws, crowd work in Leeds, ten minutes on dentists, my first open mic
    pranks: the fake escalator, glitter in the fan, a talking vending machine, the upside-down kitchen
    characters: pirates at the bank, a duck reading the news, chefs as wizards, grandma as a rapper, robots on a date
    parody: a film trailer for toast, the perfume ad, breakfast news gone wrong, a heist for socks
    improv: two strangers in a lift, the emperor's barber, a wedding on Mars, the last umbrella, a scene with no vowels
music
    guitar: a fingerpicked ballad, the blues in E, open tunings, a flamenco study, bar chords that ring
    piano: a nocturne at midnight, jazz voicings, ragtime with both hands, a film theme, the left hand alone
    singing: a sea shanty, harmony for three voices, a lullaby in Welsh, belting without pain, a gospel chorus
    beats: a boom bap loop, house from one sample, drum breaks, a bass line that walks, lo-fi for rain
    folk: fiddle tunes from Donegal, the hurdy-gurdy, a Balkan brass band, nyckelharpa duets, a polka in seven
    orchestra: the second movement, a cello suite, timpani up close, the conductor's score, a string quartet
games
    speedruns: the any-percent record, a wrong warp, the water temple skip, frame-perfect jumps, a run without a sword
    strategy: the siege of the north, a tall empire, the knight opening, rushing on turn ten, a peaceful victory
    building: a redstone clock, the floating castle, a train line of blocks, the smallest farm, an automatic bakery
    retro: the lost cartridge, sixteen-bit sprites, the arcade cabinet, a light gun that works, cheats from 1994
    shooters: the last circle, flick shots, a clutch with one life, the sniper nest, maps nobody plays
    puzzles: the impossible sokoban, a sudoku with thermometers, lights out, a maze in three colours, the final lever
cooking
    baking: sourdough bread, cinnamon rolls, apple pie, choux buns, a dark rye loaf
    street food: tacos al pastor, okonomiyaki, pani puri, crispy falafel, a proper bao
    soups: ramen broth, French onion soup, cold borscht, tom yum, lentil soup with lemon
    grilling: smoked brisket, grilled leeks, chicken over charcoal, skewers with cumin, fish in banana leaf
    pasta: cacio e pepe, hand-cut tagliatelle, pumpkin ravioli, ragu that takes all day, gnocchi
    desserts: lemon tart, mango sticky rice, burnt cheesecake, pistachio ice cream, creme caramel
sports
    football: the offside trap, a free kick over the wall, last-minute goals, the number ten, penalties in the rain
    running: a first marathon, hill repeats, a parkrun in the snow, even splits, a hundred miles on foot
    climbing: a V8 in the gym, the north face, crimps and slopers, a rope solo, the second pitch
    cycling: the mountain stage, a fixed gear in town, descending hairpins, a bike fit, cobbles in April
    basketball: the corner three, pick and roll, a buzzer beater, footwork in the post, streetball finals
    swimming: the butterfly kick, open water in winter, flip turns, the breathing pattern, a channel crossing
travel
    cities: Lisbon on foot, a night in Osaka, Istanbul by ferry, the roofs of Paris, Mexico City markets
    mountains: the hut-to-hut trail, Annapurna in autumn, a Dolomites traverse, Patagonia winds, the Tatra ridge
    islands: the Azores by scooter, Crete off season, a ferry to Skye, Zanzibar at low tide, Faroe cliffs
    trains: the sleeper to Vienna, Trans-Siberian days, a narrow gauge in Peru, Shinkansen first class
    camping: wild camping in the fells, a van for two, a hammock in the forest, the desert under stars, a stove of twigs
    food trips: breakfast in Hanoi, a pizza pilgrimage, the night market in Taipei, Oaxaca mole, pintxos in one street
pets
    cats: the kitten who hates Mondays, a cat and a cucumber, the shyest tabby, nine cats one sofa, a cat on a lead
    dogs: a border collie's first sheep, the husky who argues, a rescue dog's new home, puppies in snow
    birds: the parrot who phones, a crow with a puzzle, budgies at bath time, an owl in the kitchen, ducks at the door
    fish: a planted aquarium, the betta's new tank, shrimp on the move, a pond in winter, clownfish eggs
    rodents: a hamster maze, guinea pigs with opinions, rats that play fetch, a gerbil dig box, the chinchilla dust bath
    reptiles: a gecko's first meal, the tortoise race, a snake sheds its skin, chameleon colours, a turtle wakes up
technology
    phones: a phone with no ports, the folding screen, a battery after two years, cameras in the dark
    computers: a silent desktop, the mechanical keyboard, a laptop from spare parts, the home server, water cooling
    coding: a compiler in a weekend, the bug that slept, sorting in one line, a game in 300 lines
    robots: a robot arm that folds shirts, the line follower, a walking table, drones indoors, a very slow vacuum
    electronics: a radio from scrap, the logic analyser, soldering tiny parts, a clock of valves, solar on the balcony
    security: picking a smart lock, a password manager, the phishing mail, a hidden camera, keys on paper
beauty
    make-up: the winged eyeliner, a red lip, foundation in summer, the five-minute face, glitter for the stage
    hair: a curly cut, braids for beginners, bleach at home, the French bob, hair that holds
    skin care: a routine with three bottles, sunscreen on dark skin, retinol for patience, dry skin in winter
    nails: gel at the kitchen table, tiny landscapes, a chrome finish, short nails, press-ons that stay
    perfume: five vetivers, a scent for rain, blind buys, the smell of libraries, oud in the office
    barbering: a fade with scissors, beard lines, the straight razor, a cut for thick hair, the pompadour
learning
    history: the lost city of Ur, the salt roads, a day in Pompeii, the great frost, letters from a lighthouse
    mathematics: why primes thin out, a proof with dominoes, the shape of infinity, knots, counting to infinity twice
    languages: Japanese particles, the Finnish cases, Spanish in the shower, Arabic script, tones in Mandarin
    physics: why the sky is blue, a pendulum that forgets, the double slit, magnets and copper, time near a black hole
    biology: how octopuses taste, a cell at work, the slime mould's map, why leaves turn, bees that count
    economics: the price of tulips, who invented money, queues, auctions for air, a market for lemons
fitness
    strength: a first pull-up, the deadlift hinge, kettlebells in a corridor, five by five, squats that feel right
    yoga: sun salutations, hips after a desk day, balance on one leg, yoga for stiff people, a slow evening flow
    dance: salsa on two, shuffle steps, a hip-hop eight count, ballet at the sink, swing for two left feet
    home workouts: twenty minutes no kit, a chair and a towel, stairs as a gym, core on the carpet, a quiet HIIT
    mobility: ankles that bend, the deep squat, shoulders after forty, a spine like a cat, morning joints
    martial arts: the jab, judo throws, a tai chi form, kicks above the belt, the guard pass
crafts
    woodwork: a dovetail box, the three-legged stool, hand planes, a spoon from birch, a workbench with no screws
    knitting: a cabled jumper, socks on five needles, the invisible cast-off, a blanket of scraps, mittens from Estonia
    pottery: a thrown teapot, glazes from ash, the coil pot, a bowl that survived, handles that hold
    painting: a watercolour harbour, oils on a thumb box, the grey scale, faces in ten strokes, clouds that float
    paper: an origami crane in wet paper, a pop-up book, marbled endpapers, a lantern, a bound notebook
    sewing: a shirt collar, the invisible zip, jeans mended by hand, a tote with lining, buttonholes
news
    politics: the budget in five charts, a coalition falls, the mayor's race, who votes by post, the long debate
    weather: the storm's path, a dry spring, hail like eggs, the warmest November, fog at the airport
    business: the strike at the docks, a bakery goes public, chips and tariffs, the price of coffee, shops that close
    discoveries: a comet returns, the vaccine trial, a fossil with feathers, ice from the deep, the new telescope
    local: the bridge reopens, a library saved, the last cinema, bins on Tuesday, a swan on the tracks
    world: the summit ends, talks at the border, an election by lake, aid by air, the canal blocked
cars
    test drives: a small electric hatchback, the seven-seater, a van for dogs, the cheapest convertible
    garage: brake pads at home, the head gasket, rust under the carpet, a clutch on the drive, the mystery rattle
    classics: a Beetle with history, the barn find, chrome and patience, a 1962 roadster, the last two-stroke
    racing: a lap of the Ring, karts in the wet, the pit stop, rally notes, the chequered flag
    motorbikes: a cafe racer, the first long ride, chains and sprockets, sidecars, a scooter over the Alps
    off-road: mud up to the doors, a winch and a tree, dunes at dawn, the river ford, tyres for rocks
fashion
    street style: sneakers in Seoul, the big coat, layers in autumn, a hat for each day, denim on denim
    thrift: a suit for twelve euros, the vintage fair, flipping a jacket, the rack at the back, silk by the kilo
    outfits: a capsule wardrobe, what to wear to a wedding, one dress seven ways, an interview outfit, rain with style
    shoes: resoling boots, heels you can run in, the white trainer, clogs are back, a last carved by hand
    jewellery: a ring from a spoon, pearls on string, the watch strap, earrings of glass, silver that stays bright
    runway: the front row, a show in a car park, paper dresses, the finale look, backstage in Milan
nature
    wildlife: wolves at the river, an otter family, the fox in the yard, elephants at dusk, a badger sett
    gardening: tomatoes on a balcony, the compost heap, roses in March, a pond in a bucket, seeds from seeds
    oceans: whales off Iceland, the kelp forest, a reef at night, tide pools, the deepest squid
    forests: mushrooms in October, the oldest oak, moss up close, a forest fire's return, owls at the edge
    stars: the Perseids, Saturn's rings by phone, a dark sky map, the Moon in stripes, a galaxy from the garden
    insects: a beehive in spring, ants with a bridge, the moth trap, dragonflies hatch, a spider rebuilds
family
    babies: the first spoon, sleep in month four, a nappy in the dark, first steps, twins at bath time
    toys: a marble run, the wooden train set, dolls with jobs, a castle of boxes, bricks by colour
    stories: the bear who lost his hat, a dragon with a cold, three goats and a bridge, the moon's pyjamas
    school: packed lunches, the science fair volcano, times tables, the first day, a diary of homework
    parties: a pirate birthday, balloon animals, a cake like a digger, games for rain, the treasure hunt
    songs: the wheels of the tram, counting ducks, a song for socks, goodnight trains, the alphabet with animals
film
    trailers: the lighthouse keeper, a heist on ice, the last postman, two moons, the quiet invasion
    film reviews: a western with no guns, the slow thriller, that ending, a sequel nobody asked for
    making of: a miniature city, stunts on wires, the sound of dinosaurs, one long take, rain on a set
    animation: a walk cycle, puppets of felt, the inked frame, clay in motion, a mouth that speaks
    short films: the neighbour's piano, seven minutes of silence, a red kite, the wrong suitcase, first snow
    anime: the best opening, a mecha with feelings, swords and cherry trees, the beach episode, a manga brought to life
home
    interiors: a studio of 20 square metres, the hallway, light for a north room, shelves to the ceiling
    home repairs: a dripping tap, the squeaky stair, tiles that crack, plaster by hand, a door that sticks
    cleaning: the oven at last, limescale, a desk in ten minutes, stains on linen, windows with no streaks
    organising: the cupboard of lids, cables in order, one box a day, the pantry, paper that piles up
    tiny houses: a house on wheels, the folding bed, stairs with drawers, off the grid, a loft for cats
    houseplants: a monstera that sulks, cacti in a row, water by wick, repotting day, leaves with spots
calm
    whispers: a whispered library, brushing the microphone, the slow barber, tapping on wood, pages that turn
    rain: rain on a tin roof, a storm in the attic, drops on a tent, the wet street, thunder far away
    meditation: ten breaths, a body scan, the noisy mind, kindness for strangers, sitting with tea
    sleep: a story about a night train, eight hours of a fan, the sleepy shepherd, dark brown noise, a slow river
    satisfying: kinetic sand, soap cut in cubes, the hydraulic press, slime with beads, wax that melts
    fireplaces: a birch fire, the cabin in snow, embers at two, a candle all night, a stove that ticks
"""
"""Categories in the order of their size, their topics, and what a topic's videos are about."""


def _topics() -> Iterator[tuple[tuple[str, str], list[str]]]:
    """(category, topic) and the topic's subjects, in the order of VOCABULARY."""
    category = ""
    for line in VOCABULARY.strip().splitlines():
        if line.startswith(" "):
            topic, subjects = line.strip().split(": ")
            yield (category, topic), subjects.split(", ")
        else:
            category = line


TOPIC_NAMES, SUBJECTS = zip(*_topics(), strict=True)
