"""Texts for synthetic lines: what stands on receipts, letters, forms and labels in Latin script.

A text has a kind (`KINDS`, with its weight) and a length. Words are for the most part made of the letter trigrams of
`words.WORDS`: a reader trained on pseudo-words learns letters, not a dictionary. Labels never hold leading, trailing or
double spaces, because a drawn double space cannot be read back. Scalars come from `rng.random()`, the cheapest call of
a Generator. Forms such as "{day:02}.{month:02}.{year}" are filled by `str.format`; in figures, "#" is a random digit.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeVar

from numpy.random import Generator

from .words import (
    ADDRESSES,
    CITIES,
    CURRENCIES,
    DATES,
    DAYS,
    DOMAINS,
    EMAILS,
    FORMULAS,
    GOODS,
    LABELS,
    MONTHS,
    PHONES,
    RECEIPTS,
    STREET_KINDS,
    STREETS,
    SURNAMES,
    TIMES,
    UNITS,
    URLS,
    WORDS,
)

PUNCTUATION = "‘’“”„‹›«»–—…•·¿¡§¶†°±×÷€£¥¢©®™№µªº¹²³¼½¾"
LETTERS = (
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿĀāĂăĄąĆćĊċČčĎďĐđĒēĖėĘęĚěĞğĠġĢģĦħĪīĮįİı"
    "ĶķĹĺĻļĽľŁłŃńŅņŇňŐőŒœŔŕŘřŚśŞşŠšŤťŪūŮůŰűŲųŴŵŶŷŸŹźŻżŽžȘșȚț"
)
CHARACTERS = "".join(chr(code) for code in range(0x20, 0x7F)) + LETTERS + PUNCTUATION
"""The alphabet of the packaged model: printable ASCII, the letters of European Latin-script languages, and the marks of
good typesetting. Left out because print draws them like another sign: the low single quote (a comma) and T with cedilla
(no language's; Romanian has the comma)."""

LANGUAGES = tuple(WORDS)
_UPPER, _LOWER = string.ascii_uppercase, string.ascii_lowercase
_ALPHABETS = (*3 * (CHARACTERS[1:95],), string.punctuation, LETTERS, PUNCTUATION, CHARACTERS[1:])

_Choice = TypeVar("_Choice")


def pick(rng: Generator, choices: Sequence[_Choice]) -> _Choice:
    """One of the choices, all equally likely."""
    return choices[int(rng.random() * len(choices))]


def whole(rng: Generator, low: int, high: int) -> int:
    """A whole number in low..high, both included."""
    return low + int(rng.random() * (high - low + 1))


def chance(rng: Generator, probability: float) -> bool:
    return rng.random() < probability


def of(rng: Generator, alphabet: str, count: int) -> str:
    """`count` characters of an alphabet."""
    return "".join([alphabet[int(value * len(alphabet))] for value in rng.random(count)])


def figures(rng: Generator, pattern: str) -> str:
    """The pattern with a random digit for each "#"."""
    return "".join([chr(48 + int(rng.random() * 10)) if sign == "#" else sign for sign in pattern])


@cache
def _trigrams(language: str) -> dict[str, str]:
    """Two letters -> the letters seen after them, as often as seen; "^^" starts a word and "$" ends one."""
    table: dict[str, list[str]] = {}
    for seed in WORDS[language]:
        marked = f"^^{seed}$"
        for start in range(len(seed) + 1):
            table.setdefault(marked[start : start + 2], []).append(marked[start + 2])
    return {context: "".join(following) for context, following in table.items()}


def pseudo_word(rng: Generator, language: str) -> str:
    """A word of at most 12 letters that looks like the language and mostly is none of its words."""
    table, context, letters = _trigrams(language), "^^", ""
    while len(letters) < 12:
        letter = pick(rng, table[context])
        if letter == "$":
            break
        letters += letter
        context = context[1] + letter
    return letters


def word(rng: Generator, language: str) -> str:
    return pick(rng, WORDS[language]) if chance(rng, 0.35) else pseudo_word(rng, language)


def some_language(rng: Generator) -> str:
    return pick(rng, LANGUAGES) if chance(rng, 0.6) else "en"


def name(rng: Generator, known: Sequence[str]) -> str:
    """A name of the list, or as often one that nobody bears."""
    return pick(rng, known) if chance(rng, 0.5) else pseudo_word(rng, pick(rng, LANGUAGES)).capitalize()


def ascii_word(rng: Generator) -> str:
    """A word of small ASCII letters, as in the names of machines and mailboxes."""
    letters = pseudo_word(rng, pick(rng, ("en", "de", "it", "nl", "es")))
    return "".join([letter for letter in letters if letter in _LOWER]) or of(rng, _LOWER, 4)


def cased(rng: Generator, text: str) -> str:
    """The text in one of the cases of print: as it is, Capitalised, Title Case, CAPITALS, and rarely mIxEd."""
    choice = rng.random()
    if choice < 0.45:
        return text
    if choice < 0.65:
        return text[:1].upper() + text[1:]
    if choice < 0.80:
        return " ".join(part[:1].upper() + part[1:] for part in text.split(" "))
    if choice < 0.97:
        return text.upper()
    return "".join([letter.upper() if chance(rng, 0.5) else letter for letter in text])


def words(rng: Generator, length: int) -> str:
    """Words of one language without punctuation."""
    language = some_language(rng)
    text = word(rng, language)
    while len(text) < length:
        text += " " + word(rng, language)
    return cased(rng, text)


def sentence(rng: Generator, length: int) -> str:
    """Running text: a capital at the start, commas, quotes, brackets, hyphens, and a mark at the end."""
    language = some_language(rng)
    text = word(rng, language)
    text = text.capitalize() if chance(rng, 0.7) else text
    while len(text) < length:
        mark = pick(rng, ",,,,,.;:!?…") if chance(rng, 0.15) else ""
        text += mark + " " + _dressed(rng, word(rng, language), language)
    return text + (pick(rng, "......,:;!?…") if chance(rng, 0.6) else "")


def _dressed(rng: Generator, text: str, language: str) -> str:
    """A word as it stands inside a sentence: most often bare, else with what surrounds or replaces it."""
    choice = rng.random()
    if choice < 0.06:
        opening, closing = pick(rng, ("()", "()", "()", "[]", "{}", "<>"))
        return opening + text + closing
    if choice < 0.10:
        opening, closing = pick(rng, ('""', '""', "''", "“”", "„“", "‘’", "«»", "‹›"))
        return opening + text + closing
    if choice < 0.13:
        return f"{text}{pick(rng, ('-', '-', '-', '/', '’', '–', '_'))}{word(rng, language)}"
    if choice < 0.20:
        return text.capitalize()
    if choice < 0.24:
        return str(whole(rng, 1, 2030))
    return pick(rng, "–—&/+=*•·|†") + " " + text if choice < 0.28 else text


def number(rng: Generator) -> str:
    """A number as people print it: whole, grouped by , . space or ', decimal, signed, with a unit, in brackets."""
    value, choice = whole(rng, 0, 10 ** whole(rng, 1, 7)), rng.random()
    if choice < 0.3:
        return str(value)
    if choice < 0.5:
        return f"{value:,}".replace(",", pick(rng, ",. '’"))
    if choice < 0.75:
        return f"{value / 100:.{whole(rng, 1, 3)}f}".replace(".", pick(rng, ".,"))
    if choice < 0.85:
        return pick(rng, "+-±~<>#") + str(value)
    if choice < 0.95:
        return f"{whole(rng, 0, 1000) / 10:g}{pick(rng, UNITS)}"
    return f"({value})"


def price(rng: Generator) -> str:
    """A sum with a currency before it, behind it, or without one."""
    value = rng.random() * 10 ** whole(rng, 1, 5)
    figure = f"{value:,.2f}" if chance(rng, 0.7) else f"{value:.2f}"
    if chance(rng, 0.45):
        figure = figure.translate(str.maketrans(",.", pick(rng, (".,", " ,", "',", "’."))))
    if chance(rng, 0.1):
        figure = figure[:-2] + pick(rng, ("-", "--", "–"))
    currency, choice = pick(rng, CURRENCIES), rng.random()
    if choice < 0.3:
        figure = currency + figure if len(currency) == 1 else f"{currency} {figure}"
    elif choice < 0.65:
        figure = f"{figure} {currency}"
    return "-" + figure if chance(rng, 0.06) else figure


def date(rng: Generator) -> str:
    year = whole(rng, 1900, 2039)
    text = pick(rng, DATES).format(
        day=whole(rng, 1, 31),
        month=whole(rng, 1, 12),
        year=year,
        short=year % 100,
        name=pick(rng, MONTHS),
        weekday=pick(rng, DAYS),
    )
    return text.upper() if chance(rng, 0.1) else text


def time(rng: Generator) -> str:
    hour = whole(rng, 0, 23)
    return pick(rng, TIMES).format(
        hour=hour, half=hour % 12 + 1, later=(hour + 2) % 24, minute=whole(rng, 0, 59), second=whole(rng, 0, 59)
    )


def receipt(rng: Generator) -> str:
    """One line of a receipt: goods, counts, sums, tax, till and card."""
    good, amount = name(rng, GOODS), f"{rng.random() * 10 ** whole(rng, 1, 3):.2f}"
    return pick(rng, RECEIPTS).format(
        good=good.upper() if chance(rng, 0.35) else good,
        amount=amount.replace(".", ",") if chance(rng, 0.4) else amount,
        count=whole(rng, 1, 25),
        dots="." * whole(rng, 3, 8),
        price=price(rng),
        card=figures(rng, "####"),
    )


def phone(rng: Generator) -> str:
    return figures(rng, pick(rng, PHONES))


def address(rng: Generator) -> str:
    """A street, a town with its postal code, or a person."""
    return pick(rng, ADDRESSES).format(
        street=pick(rng, STREETS) if chance(rng, 0.5) else f"{name(rng, SURNAMES)} {pick(rng, STREET_KINDS)}",
        house=f"{whole(rng, 1, 300)}{pick(rng, ('', '', '', 'a', 'B', '/2', '-3'))}",
        city=cased(rng, name(rng, CITIES)),
        code=figures(rng, pick(rng, ("#####", "#####", "####", "##-###", "### ##", "######", "#####-####"))),
        letters=of(rng, _UPPER, 2),
        tail=of(rng, _UPPER, 2),
        digit=whole(rng, 1, 9),
        title=pick(rng, ("Mr.", "Mrs", "Dr.", "Herr", "Frau", "Mme", "Sr.", "Prof.", "c/o", "Attn:", "z.Hd.")),
        initial=of(rng, _UPPER, 1),
        surname=name(rng, SURNAMES),
    )


def _filled_web(rng: Generator, forms: Sequence[str]) -> str:
    text = pick(rng, forms).format(
        a=ascii_word(rng), b=ascii_word(rng), c=ascii_word(rng), top=pick(rng, DOMAINS), i=of(rng, _LOWER, 1),
        digits=whole(rng, 0, 9999), token=of(rng, string.ascii_letters + string.digits, whole(rng, 5, 9)),
    )  # fmt: skip
    return text.upper() if chance(rng, 0.06) else text


def email(rng: Generator) -> str:
    return _filled_web(rng, EMAILS)


def url(rng: Generator) -> str:
    """Addresses of the web, of files, and the tags of social networks."""
    return _filled_web(rng, URLS)


def code(rng: Generator) -> str:
    """A serial number, plate, booking code, IBAN, hash or part number: letters and digits in groups."""
    choice, capitals = rng.random(), _UPPER + string.digits
    if choice < 0.4:
        return pick(rng, "-- ./_:").join([of(rng, capitals, whole(rng, 1, 6)) for _ in range(whole(rng, 1, 4))])
    if choice < 0.55:
        joint = pick(rng, ("-", " ", "", "#", "/"))
        return of(rng, _UPPER, whole(rng, 1, 3)) + joint + of(rng, string.digits, whole(rng, 2, 7))
    if choice < 0.65:
        return of(rng, _UPPER, 2) + figures(rng, "## #### #### #### ##")
    if choice < 0.8:
        return of(rng, string.ascii_letters + string.digits, whole(rng, 4, 14))
    if choice < 0.9:
        return of(rng, "0123456789abcdef", whole(rng, 6, 16))
    return f"{pick(rng, LABELS)} {of(rng, string.digits, whole(rng, 2, 9))}"


def formula(rng: Generator) -> str:
    """Sums, dimensions, fractions, lines of programs, and the signs that stand nowhere else."""
    a, b, c = whole(rng, 0, 99), whole(rng, 0, 99), whole(rng, 0, 2040)
    sign, letter = pick(rng, "+-*/×÷=<>±^%&|"), pick(rng, "abcnxyzkmAEFT")
    return pick(rng, FORMULAS).format(a=a, b=b, c=c, sign=sign, x=letter, w=ascii_word(rng))


def uniform(rng: Generator, length: int) -> str:
    """Characters without any sense, in groups: the only kind in which rare signs are as frequent as others."""
    text = ""
    while len(text) < length:
        text += (" " if text else "") + of(rng, pick(rng, _ALPHABETS), whole(rng, 1, 8))
    return text


def _lined_up(short: Callable[[Generator], str]) -> Callable[[Generator, int], str]:
    """Lines from short texts: several beside each other, or after words, until the length is reached."""

    def line(rng: Generator, length: int) -> str:
        text = short(rng)
        while len(text) < length - 3:
            other = short(rng) if chance(rng, 0.5) else word(rng, some_language(rng))
            joint = pick(rng, (" ", " ", " ", ", ", " / ", " - ", " | ", ": ", "; "))
            text = other + " " + text if chance(rng, 0.5) else text + joint + other
        return text

    return line


KINDS: dict[str, tuple[float, Callable[[Generator, int], str]]] = {
    "words": (0.20, words),
    "sentence": (0.24, sentence),
    "number": (0.05, _lined_up(number)),
    "price": (0.06, _lined_up(price)),
    "date": (0.06, _lined_up(date)),
    "time": (0.02, _lined_up(time)),
    "receipt": (0.07, _lined_up(receipt)),
    "phone": (0.03, _lined_up(phone)),
    "address": (0.05, _lined_up(address)),
    "email": (0.04, _lined_up(email)),
    "url": (0.03, _lined_up(url)),
    "code": (0.07, _lined_up(code)),
    "formula": (0.03, _lined_up(formula)),
    "uniform": (0.05, uniform),
}
"""Kind -> its weight and its generator, called with the Generator and the length to aim at."""


def draw_text(rng: Generator, max_length: int = 48, min_length: int = 1) -> tuple[str, str]:
    """A text of 1..max_length characters of `CHARACTERS`, and its kind, drawn by weight.

    `min_length` is aimed at, not promised: a short date stays a date. Raises ValueError for impossible lengths.
    """
    if not 1 <= min_length <= max_length:
        raise ValueError(f"lengths must satisfy 1 <= min_length <= max_length, got {min_length} and {max_length}")
    kind = weighted(rng, {kind: weight for kind, (weight, _) in KINDS.items()})
    text = collapse(KINDS[kind][1](rng, whole(rng, min_length, max_length)))
    return _cut(text, max_length), kind


def weighted(rng: Generator, weights: Mapping[str, float]) -> str:
    """A key, as often as its weight says."""
    rest = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        rest -= weight
        if rest < 0:
            return key
    return key


def collapse(text: str) -> str:
    """The text as a label: single spaces inside, none at the ends."""
    return " ".join(text.split())


def _cut(text: str, max_length: int) -> str:
    """At most max_length characters: whole words, where the first one fits."""
    if len(text) <= max_length:
        return text
    head = text[: max_length + 1].rsplit(" ", 1)[0]
    return head if len(head) <= max_length else text[:max_length]
