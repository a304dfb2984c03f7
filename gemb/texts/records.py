"""What a record is: a text with its id, title and kept fields, or the reason why there is none."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gemb.io.notes import note

Id = int | str
TEXT_NAMES = ("text", "contents")  # of the field of the text where none is named
DEEPEST = 200  # levels of a kept field; orjson writes 254

# Names that the output gives to fields of its own: a kept field cannot have one.
RESERVED = ("id", "embedding", "tokens", "truncated", "task", "fingerprint", "dtype", "error")


# Marks and letters of no width or without ink, beside spaces, control and format codes.
# Source: Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and the blank Braille.
_UNSEEN = frozenset(
    map(
        chr,
        (
            0x034F,
            *(0x115F, 0x1160, 0x3164, 0xFFA0),
            *(0x17B4, 0x17B5, 0x2800),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no vector."""

    code: str  # empty, invalid_utf8, bad_json, bad_csv, missing_field, too_long, not_finite, ...
    message: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input."""

    id: Id  # the row's number from 1, path:number of one of several files, or the id field
    place: str  # where the row is, for messages: line 17, notes.txt:17
    text: str = ""
    title: str | None = None
    kept: Mapping[str, object] = field(default_factory=dict)
    error: RowError | None = None
    size: int = 1  # share of the input, for progress: bytes, or 1 of a table's rows


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which fields of a row are what."""

    text: Sequence[str] = ()  # joined by a newline; empty: `text`, or a table's only column
    title: str | None = None
    id: str | None = None
    keep: Sequence[str] = ()
    keep_all: bool = False
    title_may_lack: bool = False  # nobody named the title: it is taken where there is one
    text_may_lack: bool = False  # the row has its vector: it needs no text

    def named(self) -> list[str]:
        """Return every field that must be there."""
        title = None if self.title_may_lack else self.title
        return [*self.text, *filter(None, (title, self.id)), *self.keep]


def from_text(text: str, number: int, place: str) -> Record:
    """Return the record of a text that stands for itself."""
    return Record(number, place, text, error=unfit(text))


def from_fields(
    values: Mapping[str, object], fields: Fields, record_id: Id, place: str, size: int
) -> Record:
    """Return the record that these fields of a row make.

    Args:
        values: the row's fields by name.
        fields: which of them to take; `fields.text` is not empty.
        record_id: the id unless `fields.id` names one.
        place: for messages.
        size: share of the input.
    """
    number = record_id
    text, error = _text(values, fields)
    if fields.id is not None:
        value = field_value(values, fields.id)
        if value is None or value == "":  # as null is written in a table of text
            error = _missing(fields.id, values)
        elif not is_writable(value):
            error = RowError("bad_field", f"field '{fields.id}' is {_kind(value)}, not an id")
        else:
            record_id = as_id(value)
    value = field_value(values, fields.title) if fields.title else None
    if isinstance(value, bytes):
        error = error or RowError("bad_field", f"field '{fields.title}' is bytes, not text")
    title = str(value) if value and not isinstance(value, bytes) else None
    kept, kept_error = _kept_fields(values, fields)
    error = kept_error or error or unfit(text, title or "", record_id, *kept.values())
    if error and error.code == "empty":
        if fields.text_may_lack or (title and has_visible(title)):  # a title alone is a text, too
            error = None
        elif null := [name for name in fields.text if field_value(values, name) is None]:
            error = RowError("empty", f"the text is empty: field '{null[0]}' is null")
    if error and error.code == "invalid_utf8":
        kept, record_id = {}, number  # they may be what cannot be written
    return Record(record_id, place, text, title, kept, error, size)


def _kept_fields(
    values: Mapping[str, object], fields: Fields
) -> tuple[Mapping[str, object], RowError | None]:
    """Return the fields to keep, or why one of them cannot be written."""
    kept = _kept(values, fields)
    for name, value in kept.items():
        if is_too_deep(value):
            return {}, RowError("bad_field", f"field '{name}' is nested over {DEEPEST} deep")
        if name in fields.keep and isinstance(value, float) and not is_writable(value):
            return {}, RowError("bad_field", f"field '{name}' is {_kind(value)}; JSON has none")
    return kept, None


def has_field(values: Mapping[str, object], name: str) -> bool:
    """Return whether a row has a field, which `a.b` names inside of another."""
    if name in values:
        return True
    outer, dot, inner = name.partition(".")
    while dot:
        value = values.get(outer)
        if isinstance(value, Mapping) and has_field(value, inner):
            return True
        part, dot, inner = inner.partition(".")
        outer = f"{outer}.{part}"
    return False


def field_value(values: Mapping[str, object], name: str) -> object:
    """Return the value of a field, which `a.b` names inside of another; None where it has none."""
    if name in values:
        return values[name]
    outer, dot, inner = name.partition(".")
    while dot:
        value = values.get(outer)
        if isinstance(value, Mapping) and has_field(value, inner):
            return field_value(value, inner)
        part, dot, inner = inner.partition(".")
        outer = f"{outer}.{part}"
    return None


def is_writable(value: object) -> bool:
    """Return whether a value of a field can stand in JSON: no bytes, NaN or infinity."""
    return not isinstance(value, bytes) and not (isinstance(value, float) and value - value != 0)


def _text(values: Mapping[str, object], fields: Fields) -> tuple[str, RowError | None]:
    """Return the text, its fields joined by a newline, or why there is none."""
    texts: list[str] = []
    for name in fields.text:
        value = field_value(values, name)
        if isinstance(value, str):
            texts.append(value)
        elif value is not None:
            return "", RowError("bad_field", f"field '{name}' is {_kind(value)}, not text")
        elif not (fields.text_may_lack or has_field(values, name)):
            return "", _missing(name, values)
    return "\n".join(texts), None


def _kept(values: Mapping[str, object], fields: Fields) -> Mapping[str, object]:
    if not fields.keep_all:
        return {name: field_value(values, name) for name in fields.keep}
    taken = {*fields.text, fields.title, fields.id, *RESERVED}
    for name in values:
        if name in RESERVED and name not in (*fields.text, fields.title, fields.id):
            hint = "; --id-field id makes it the row's id" if name == "id" else ""
            note(f"field '{name}' is not kept: the output has one of that name{hint}", once=True)
    return {name: value for name, value in values.items() if name not in taken}


def as_id(value: object) -> Id:
    """Return the value of an id field as an id: a whole number or a text."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return as_json(value) if isinstance(value, bool | dict | list) else str(value)


def as_json(value: object) -> str:
    """Return a kept value as JSON, for where a text must stand; dates and the like as texts."""
    import orjson

    return orjson.dumps(value, as_text, orjson.OPT_NON_STR_KEYS).decode()


def as_text(value: object) -> str:
    """Return a value that JSON has not as text: bytes in base64, dates and the like as written."""
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    return str(value)


def is_too_deep(value: object) -> bool:
    """Return whether a kept field has more levels than `DEEPEST`."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _missing(name: str, values: Mapping[str, object]) -> RowError:
    if has_field(values, name):
        state = "null" if field_value(values, name) is None else "empty"
        return RowError("missing_field", f"field '{name}' is {state}")
    return RowError("missing_field", f"no field '{name}'; it has: {_names(values)}")


def unfit(text: str, *others: object) -> RowError | None:
    """Return why a row cannot be embedded, or None. `others` are written, so must be UTF-8 too."""
    if not others and text.isascii() and "!" <= text[:1] <= "~":  # as most
        return None
    for value in (text, *others):
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return RowError("invalid_utf8", f"character {error.start + 1} is no valid UTF-8")
    return None if has_visible(text) else RowError("empty", "the text is empty")


def has_visible(text: str) -> bool:
    """Return whether a text has a character that can be seen: no space, control or format code."""
    for character in text:
        if character.isspace() or character in _UNSEEN:
            continue
        if character.isprintable() or unicodedata.category(character) not in ("Cc", "Cf"):
            return True
    return False


def _names(values: Mapping[str, object]) -> str:
    shown = [str(name) for name in list(values)[:6]]
    return ", ".join(shown) + (", ..." if len(values) > 6 else "") or "none"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not is_writable(value):
        return "not a finite number"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else f"of the type {type(value).__name__}"
