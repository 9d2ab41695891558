"""Sentences of the demo: a small grammar of voice-assistant commands, spelled letters, digits and times.

Every word is upper case, and no word is the homophone of another that fits at the same place (no FOR beside
FOUR, no TO beside TWO, no article A beside the letter A): what is heard decides what is written.
"""

import hashlib
import random
from collections.abc import Iterator

ROOMS = ("KITCHEN", "BEDROOM", "BATHROOM", "GARAGE", "OFFICE", "GARDEN", "CELLAR", "HALLWAY", "ATTIC")
SWITCHED = ("LIGHT", "LAMP", "RADIO", "HEATER", "FAN", "TELEVISION", "SPEAKER", "CAMERA", "PRINTER")
MOVED = ("DOOR", "WINDOW", "CURTAIN", "SHUTTER", "GATE", "CUPBOARD")
COLOURS = ("BLUE", "GREEN", "YELLOW", "ORANGE", "PURPLE", "WHITE", "BLACK")
MUSIC = ("JAZZ", "CLASSICAL", "FOLK", "PIANO", "GUITAR", "DANCE")
PEOPLE = ("MOTHER", "FATHER", "BROTHER", "SISTER", "DOCTOR", "DENTIST", "NEIGHBOUR", "TEACHER")
PLACES = ("LONDON", "PARIS", "BERLIN", "MADRID", "OSLO", "TOKYO", "CAIRO", "BOSTON")
FOOD = ("BREAD", "BUTTER", "CHEESE", "APPLES", "COFFEE", "SUGAR", "TOMATOES", "RICE", "MILK")
DAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY", "TOMORROW", "TONIGHT")
DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
HOURS = (*DIGITS[1:], "TEN", "ELEVEN", "TWELVE")
MINUTES = ("FIFTEEN", "TWENTY", "THIRTY", "FORTY", "FIFTY")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

TEMPLATES = (
    "TURN {on_off} THE {room} {switched}",
    "TURN {on_off} THE {colour} {switched} IN THE {room}",
    "PLEASE {open_close} THE {room} {moved}",
    "{open_close} THE {colour} {moved}",
    "{open_close} THE {moved} AND THE {moved2}",
    "SET THE {clock} AT {time}",
    "SET THE {clock} {day} AT {time}",
    "WAKE ME {day} AT {time}",
    "PLAY {music} MUSIC IN THE {room}",
    "PLAY NUMBER {number} FROM MY {music} LIST",
    "CALL MY {person} {day}",
    "CALL THE {person} AT {time}",
    "SEND MY {person} THE {colour} PICTURE",
    "SPELL {letters}",
    "THE CODE IS {letter} {letter2} {digits}",
    "DIAL {digits}",
    "CALL NUMBER {digits}",
    "BUY {number} {food} AND {food2}",
    "PUT {food} ON THE SHOPPING LIST",
    "WHAT IS THE WEATHER IN {place} {day}",
    "WHAT TIME IS IT IN {place}",
    "REMIND ME ABOUT THE {person} {day} AT {time}",
    "BOOK THE TRAIN FROM {place} {day} AT {time}",
    "HOW FAR IS {place} FROM {place2}",
)
CLOCKS = ("ALARM", "TIMER", "OVEN", "CLOCK")
WORDS = tuple(
    sorted(
        {word for template in TEMPLATES for word in template.split() if word.isalpha()}
        | {"ON", "OFF", "OPEN", "CLOSE", "LOCK"}
        | {*ROOMS, *SWITCHED, *MOVED, *COLOURS, *MUSIC, *PEOPLE, *PLACES, *FOOD, *DAYS, *HOURS, *MINUTES}
        | {*CLOCKS, *DIGITS, *LETTERS}
    )
)
MIN_WORDS, MAX_WORDS = 2, 9
TEST_SHARE = 8


def random_sentence(rng: random.Random) -> str:
    """One sentence of `MIN_WORDS` to `MAX_WORDS` upper-case words, drawn from the grammar with `rng`."""
    template = rng.choice(TEMPLATES)
    moved, moved2 = rng.sample(MOVED, 2)
    food, food2 = rng.sample(FOOD, 2)
    place, place2 = rng.sample(PLACES, 2)
    time = rng.choice(HOURS) + (f" {rng.choice(MINUTES)}" if rng.random() < 0.5 else "")
    sentence = template.format(
        on_off=rng.choice(("ON", "OFF")),
        open_close=rng.choice(("OPEN", "CLOSE", "LOCK")),
        room=rng.choice(ROOMS),
        switched=rng.choice(SWITCHED),
        moved=moved,
        moved2=moved2,
        colour=rng.choice(COLOURS),
        clock=rng.choice(CLOCKS),
        time=time,
        day=rng.choice(DAYS),
        music=rng.choice(MUSIC),
        person=rng.choice(PEOPLE),
        number=rng.choice(HOURS),
        letters=" ".join(rng.choices(LETTERS, k=rng.randint(2, 4))),
        letter=rng.choice(LETTERS),
        letter2=rng.choice(LETTERS),
        digits=" ".join(rng.choices(DIGITS, k=rng.randint(2, 4))),
        food=food,
        food2=food2,
        place=place,
        place2=place2,
    )
    assert MIN_WORDS <= len(sentence.split()) <= MAX_WORDS, sentence
    return sentence


def is_test_sentence(sentence: str) -> bool:
    """Whether a sentence belongs to the test split: decided by its digest, the same for every seed and size.

    One sentence in `TEST_SHARE` does. Train and test therefore share no sentence, and the teacher, who trains
    on other draws of the same grammar, never met a test sentence either.
    """
    return hashlib.sha256(sentence.encode()).digest()[0] % TEST_SHARE == 0


def sentences(seed: str, *, test: bool) -> Iterator[str]:
    """Endless distinct sentences of one split; the same `seed` gives the same sequence."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        sentence = random_sentence(rng)
        if is_test_sentence(sentence) == test and sentence not in seen:
            seen.add(sentence)
            yield sentence
