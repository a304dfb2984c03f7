"""Lines to tell tokenizers apart: scripts, white space, digits, controls, literal tokens."""

from __future__ import annotations

import random

# Blocks of Unicode, first and last code point: letters of many scripts, and what is odd.
_BLOCKS = {
    "ascii": (0x20, 0x7E),
    "latin": (0xA0, 0x24F),
    "combining": (0x300, 0x36F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x5B0, 0x5F4),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "bengali": (0x980, 0x9FF),
    "tamil": (0xB82, 0xBFA),
    "thai": (0xE01, 0xE5B),
    "georgian": (0x10A0, 0x10FF),
    "hangul jamo": (0x1100, 0x11FF),
    "ethiopic": (0x1200, 0x137F),
    "runes": (0x16A0, 0x16F8),
    "khmer": (0x1780, 0x17F9),
    "punctuation": (0x2000, 0x206F),
    "superscripts and currency": (0x2070, 0x20BF),
    "arrows and mathematics": (0x2190, 0x22FF),
    "boxes and shapes": (0x2500, 0x27BF),
    "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "private use": (0xE000, 0xE0FF),
    "wide forms": (0xFF00, 0xFFEF),
    "gothic": (0x10330, 0x1034A),
    "emoji": (0x1F300, 0x1FAFF),
    "rare han": (0x20000, 0x2A6DF),
    "tags and selectors": (0xE0000, 0xE01EF),
}
_LITERALS = """
    <pad> <eos> <bos> <unk> <mask> [multimodal] <unused0> <unused1> <unused98> <unused6200>
    <start_of_turn> <end_of_turn> <image_soft_token> <start_of_image> <end_of_image> <table>
    <td> </td> <h1> </h1> <strong> </code> <a> <0x41> <0x0A> <0xFF> <| |> <s> </s> [CLS] <EOS>
    <eos <bos>> < eos> <eos>model ▁ ▁▁ ▁▁▁ ▁the
""".split()  # noqa: SIM905
_EMOJI = ("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇺🇦", "❤️", "1️⃣", "☝🏿", "🧑🏻‍🚀")
_SPACES = (" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\v")
_WORDS = """
    the of and quick brown fox jumps over lazy dog search result query title none text
    Donaudampfschifffahrt l'été naïve coöperate don't It's I'm U.S.A. e-mail
    https://example.org/a?b=c der die das und le la les el los não слово предложение
    日本語 中文字 한국어 שלום مرحبا नमस्ते สวัสดี def return import self.__init__
    std::vector<int> 0x1F 3.14159 1e-5 2026-11-23 100,000 $5.00 50% camelCaseName
    snake_case_name CONSTANT_NAME --flag key=value {'a':[1,2]} #include <stdio.h>
""".split()  # noqa: SIM905


def token_lines(count: int, seed: int = 0) -> list[str]:
    """Return the same `count` lines each time. None holds a lone surrogate: no UTF-8 does."""
    chance = random.Random(seed)
    kinds = (_words, _script, _mixture, _white_space, _digits, _controls, _literals, _repeats)
    fixed = ["", " ", "\n", "\0", *_LITERALS, *_EMOJI, *_SPACES]
    made = (kinds[i % len(kinds)](chance) for i in range(count - len(fixed)))
    return [*fixed, *made]


def _words(chance: random.Random) -> str:
    some = chance.choices(_WORDS, k=chance.randint(1, 30))
    return " ".join(word.upper() if chance.random() < 0.05 else word for word in some)


def _script(chance: random.Random) -> str:
    first, last = _BLOCKS[chance.choice(list(_BLOCKS))]
    letters = [chr(chance.randint(first, last)) for _ in range(chance.randint(1, 60))]
    return "".join(" " if chance.random() < 0.15 else letter for letter in letters)


def _mixture(chance: random.Random) -> str:
    parts = [_script(chance)[:8] for _ in range(chance.randint(2, 8))]
    return chance.choice(("", " ", "-")).join([*parts, chance.choice(_EMOJI)])


def _white_space(chance: random.Random) -> str:
    parts = []
    for _ in range(chance.randint(1, 10)):
        parts.append(chance.choice(_SPACES) * chance.choice((1, 1, 2, 3, 7, 16, 31, 32, 40, 65)))
        parts.append(chance.choice(_WORDS) if chance.random() < 0.7 else "")
    return "".join(parts)


def _digits(chance: random.Random) -> str:
    numbers = ["".join(chance.choices("0123456789", k=chance.randint(1, 25))) for _ in range(5)]
    return chance.choice((" ", ", ", ".", "/", "-", "٣", "")).join(numbers)


def _controls(chance: random.Random) -> str:
    codes = [*range(32), 0x7F, *range(0x80, 0xA0), 0x200B, 0x200D, 0x202E, 0xFEFF, 0xFFFD, 0xFFFE]
    parts = [chr(chance.choice(codes)) for _ in range(chance.randint(1, 12))]
    return "".join(part + chance.choice((*_WORDS, "", " ")) for part in parts)


def _literals(chance: random.Random) -> str:
    parts = chance.choices((*_LITERALS, *_WORDS), k=chance.randint(1, 10))
    return "".join(part + chance.choice(("", "", " ", "\n", "  ")) for part in parts)


def _repeats(chance: random.Random) -> str:
    piece = chance.choice((*_WORDS, *"-=_*#.~aeox0あ中", "ab", "ha", "▁", "\n", " ", "\t"))
    return piece * chance.randint(2, 80) + chance.choice(("", " x", "\n"))
