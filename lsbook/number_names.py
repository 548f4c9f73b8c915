"""A made corpus whose truth is known: number names from zero to 999,999 in English and in German.

Small enough to train on in a minute, and not word for word: German says the unit before the ten ("dreiundvierzig",
three-and-forty) and writes the whole name as one word.
"""

import torch

from .checks import check_int

LARGEST = 999_999  # from a million on German nouns are feminine: "eine Million", no longer one word


def _words(text):
    return text.split()


_ENGLISH = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ENGLISH_TENS = _words("– – twenty thirty forty fifty sixty seventy eighty ninety")  # the first two have no tens
_GERMAN = _words(
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
)
_GERMAN_TENS = _words("– – zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")


def english(number):
    """The English name of a whole number from 0 to 999,999, without "and".

    Raises TypeError, ValueError for anything else.

    >>> english(243), english(70_016)
    ('two hundred forty-three', 'seventy thousand sixteen')
    """
    thousands, rest = divmod(_checked(number), 1000)
    words = [_english_below_1000(thousands), "thousand"] if thousands else []
    if rest or not thousands:
        words.append(_english_below_1000(rest))
    return " ".join(words)


def _english_below_1000(number):
    hundreds, rest = divmod(number, 100)
    words = [_ENGLISH[hundreds], "hundred"] if hundreds else []
    if rest or not hundreds:
        tens, unit = divmod(rest, 10)
        ten_and_unit = _ENGLISH_TENS[tens] + (f"-{_ENGLISH[unit]}" if unit else "")
        words.append(_ENGLISH[rest] if rest < 20 else ten_and_unit)
    return " ".join(words)


def german(number):
    """The German name of a whole number from 0 to 999,999, one word, without "und" after hundreds and thousands.

    One is "eins" at the end of a name and "ein" before "und", "hundert" and "tausend" (Duden, "Zahlen und Ziffern").
    Raises TypeError, ValueError for anything else.

    >>> german(243), german(101_001)
    ('zweihundertdreiundvierzig', 'einhunderteintausendeins')
    """
    thousands, rest = divmod(_checked(number), 1000)
    name = _german_below_1000(thousands) + "tausend" if thousands else ""
    if rest or not thousands:
        name += _german_below_1000(rest) + ("s" if rest % 100 == 1 else "")
    return name


def _german_below_1000(number):
    """The name as it stands before "tausend": with "ein", not "eins", at its end."""
    hundreds, rest = divmod(number, 100)
    name = _GERMAN[hundreds] + "hundert" if hundreds else ""
    if rest or not hundreds:
        tens, unit = divmod(rest, 10)
        unit_and_ten = (f"{_GERMAN[unit]}und" if unit else "") + _GERMAN_TENS[tens]
        name += _GERMAN[rest] if rest < 20 else unit_and_ten
    return name


def _checked(number):
    if not 0 <= check_int(number, "number") <= LARGEST:
        raise ValueError(f"number must lie in [0, {LARGEST}], got {number}")
    return int(number)


def pairs(train=5_000, val=500, test=1_000, largest=LARGEST, seed=0):
    """English and German names of different random numbers 0 … largest: a dictionary from split to (English, German).

    The seed and `largest` decide the order in which numbers are drawn: first those of test, then val, then train. So
    a larger training split holds the smaller one, and leaves test and val as they are. Raises TypeError, ValueError if
    a size is negative, or if there are not so many numbers.
    """
    sizes = {"test": check_int(test, "test", 0), "val": check_int(val, "val", 0), "train": check_int(train, "train", 0)}
    if not 1 <= check_int(largest, "largest") <= LARGEST:
        raise ValueError(f"largest must lie in [1, {LARGEST}], got {largest}")
    if sum(sizes.values()) > largest + 1:
        raise ValueError(f"train + val + test must be at most the {largest + 1} numbers, got {sum(sizes.values())}")
    generator = torch.Generator().manual_seed(check_int(seed, "seed", 0))
    drawn = iter(torch.randperm(largest + 1, generator=generator).tolist())
    numbers = {split: [next(drawn) for _ in range(size)] for split, size in sizes.items()}
    return {split: [(english(n), german(n)) for n in numbers[split]] for split in ("train", "val", "test")}
