"""Endless speech for the teacher: many voices, many rooms, the demo's grammar and word salad."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from demo.sentences import WORDS, is_test_sentence, random_sentence
from demo.voices import (
    SAMPLE_RATE_HZ,
    Espeak,
    make_room_and_noise,
    random_teacher_speaker,
    teacher_variants,
    to_16khz,
)

# Beside the grammar's words, so that the teacher learns sounds and not only the demo's sentences.
_EXTRA_WORDS = """
ABOVE ACTION AFTER AGAIN AIRPORT ALMOST ALWAYS AMONG ANIMAL ANSWER ARMY AROUND ARTIST AUTUMN BABY BACK
BALANCE BANK BASKET BEACH BEAUTIFUL BECAUSE BEFORE BEGIN BEHIND BETTER BEYOND BICYCLE BIRD BOAT BODY
BOTTLE BOTTOM BRANCH BRIDGE BRIGHT BRING BROKEN BUILD BUSINESS CABIN CANDLE CAPTAIN CARPET CARRY CASTLE
CATCH CENTURY CERTAIN CHAIR CHANGE CHAPTER CHEAP CHILDREN CHOICE CHURCH CIRCLE CLEAN CLIMB CLOUD COAT
COLLECT COMMON COMPANY CORNER COTTON COUNTRY COUSIN COVER CRUEL CUP CURIOUS CUSTOM DANGER DARK DECIDE DEEP
DELAY DESERT DIFFERENT DINNER DISTANCE DOG DOUBLE DRAGON DREAM DRINK DRIVE DUST EARLY EARTH EASY EDGE
EFFORT EMPTY ENGINE ENJOY ENOUGH EVENING EVERY EXACTLY EXAMPLE EXPECT FAMILY FAMOUS FARM FAST FEATHER
FENCE FEVER FIELD FINGER FINISH FIRE FISH FLOOR FLY FOLLOW FOREST FORGET FOUND FRESH FRIEND FRUIT FUTURE
GATHER GENTLE GIVE GLASS GOLD GRASS GROUND GROUP GROWN HAMMER HAND HAPPY HARBOUR HEAVY HELP HIGH HISTORY
HOLIDAY HONEY HORSE HOTEL HOUSE HUNDRED HURRY ICE IMAGE INCH INSIDE IRON ISLAND JACKET JELLY JOIN JOURNEY
JUDGE JUMP JUNGLE JUST KEEP KETTLE KIND KING KNEE LADDER LAKE LANGUAGE LARGE LATER LAUGH LEADER LEARN
LEATHER LETTER LIBRARY LITTLE LONG LOUD LOVE LUCKY MACHINE MARKET MEASURE MEMORY METAL MIDDLE MILLION
MIRROR MOMENT MONEY MONTH MOON MORNING MOUNTAIN MOUTH MOVE NARROW NATURE NEEDLE NETWORK NEVER NOISE NORTH
NOTHING OBJECT OCEAN ONION OTHER OUTSIDE PAINT PALACE PAPER PARENT PEPPER PERFECT PICNIC PLANET PLEASURE
POCKET POINT POLICE POTATO POWDER PRESENT PRETTY PRICE PROMISE PUBLIC PULL PUSH QUARTER QUEEN QUESTION
QUICKLY QUIET RABBIT RAINY REACH READY REASON RESULT RETURN RIBBON RIVER ROUND ROYAL SADDLE SALT SANDWICH
SCHOOL SECRET SEVENTY SHADOW SHARP SHIP SHOULDER SILVER SIMPLE SINGLE SIXTEEN SLEEP SLOW SMOOTH SOLDIER
SOUTH SPIDER SPRING SQUARE STATION STONE STORY STRANGE STREET STRONG SUDDEN SUMMER SWEET SWIM SYSTEM TABLE
TEMPLE THANK THICK THIN THOUGH THOUSAND THROUGH THUMB TOGETHER TONGUE TOWEL TRAVEL TREASURE TROUBLE TRUTH
UMBRELLA UNCLE UNDER USEFUL VALLEY VEGETABLE VILLAGE VISION VISIT VOICE WAGON WATER WEEKEND WHEEL WHISPER
WIDE WINTER WITHIN WOMAN WONDER WOODEN WORLD YARD YESTERDAY YOUNG ZEBRA
"""
EXTRA_WORDS = tuple(_EXTRA_WORDS.split())
GRAMMAR_SHARE = 0.75
MAX_DURATION_S = 7.0


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance: audio float32 (samples,) at 16 kHz and its text."""

    audio: np.ndarray
    text: str


def random_text(rng: random.Random) -> str:
    """A sentence of the grammar outside the test split, or one to seven unconnected words."""
    if rng.random() < GRAMMAR_SHARE:
        sentence = random_sentence(rng)
        while is_test_sentence(sentence):
            sentence = random_sentence(rng)
        return sentence
    words = (*WORDS, *EXTRA_WORDS)
    return " ".join(rng.choices(words, k=rng.randint(1, 7)))


def stretch(samples: np.ndarray, factor: float) -> np.ndarray:
    """Plays int16 (samples,) `factor` times as fast: pitch and formants rise, as for a shorter speaker."""
    positions = np.arange(0, len(samples) - 1, factor)
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.int16)


def teacher_speech(engine: Espeak, seed: str) -> Iterator[Example]:
    """Endless examples, each with a voice, a room and a text of its own.

    Voices: every accent, every human variant but those of the demo's test speakers, free pitch and rate.
    """
    rng = random.Random(seed)
    noise = np.random.default_rng(rng.getrandbits(64))
    variants = teacher_variants()
    while True:
        text = random_text(rng)
        samples = engine.speak(text, random_teacher_speaker(rng, variants))
        if rng.random() < 0.7:
            samples = stretch(samples, rng.uniform(0.88, 1.14))
        audio = to_16khz(samples, engine.sample_rate_hz)
        if len(audio) <= MAX_DURATION_S * SAMPLE_RATE_HZ:
            audio = make_room_and_noise(audio, noise, snr_db=(6.0, 35.0), level_db=(-35.0, -15.0))
            yield Example(audio=audio, text=text)


def batches(engine: Espeak, seed: str, *, pool: int, batch_s: float) -> Iterator[list[Example]]:
    """`pool` examples in batches of like length, each at most `batch_s` seconds of audio with its padding."""
    source = teacher_speech(engine, seed)
    examples = sorted((next(source) for _ in range(pool)), key=lambda example: len(example.audio))
    groups: list[list[Example]] = [[]]
    for example in examples:
        if groups[-1] and (len(groups[-1]) + 1) * len(example.audio) > batch_s * SAMPLE_RATE_HZ:
            groups.append([])
        groups[-1].append(example)
    random.Random(seed).shuffle(groups)
    yield from groups
