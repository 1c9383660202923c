"""What the synthetic platform's videos are called: categories, topics, subjects and titles, all made up for it."""

from collections.abc import Iterator


def title(topic: int, creator: int, number: int) -> str:
    """A title that only a video of that topic can have, spelled by a number of 64 bits; it names creator and topic."""
    number, subject = divmod(number, len(SUBJECTS[topic]))
    number, frame = divmod(number, len(FRAMES))
    words = FRAMES[frame].format(SUBJECTS[topic][subject])
    tag = TOPIC_NAMES[topic][1].replace(" ", "")
    return f"{words[0].upper()}{words[1:]}, {TWISTS[number % len(TWISTS)]} | {name(creator)} #{tag}"


def name(creator: int) -> str:
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
