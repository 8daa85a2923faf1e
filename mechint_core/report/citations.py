"""The project's bibliography: `references.bib` read, and its entries as a person cites them.

A BibTeX file is entries `@type{key, field = value, ...}`; a value is braced (braces nest), quoted, or bare.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import mechint_core

ACCENTS = {
    "'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307",
    "c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328", "r": "\u030a",
}  # fmt: skip
LETTERS = {"ss": "ß", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "ae": "æ", "AE": "Æ", "aa": "å", "AA": "Å", "i": "ı"}
ACCENT = re.compile(r"""\\(['`^"~=.]|[cvuHkr](?=[\s{]))\s*\{?\\?([A-Za-z])\}?""")
LETTER = re.compile(r"\\(ss|ae|AE|aa|AA|[oOlLi])(?![A-Za-z])\s*")
ENTRY = re.compile(r"@(\w+)\s*\{\s*([^,\s}]+)\s*,")
FIELD = re.compile(r"\s*,?\s*([\w-]+)\s*=\s*")
MANY_AUTHORS = 6


@dataclass(frozen=True, slots=True)
class Reference:
    """One bibliography entry, ready to print."""

    key: str
    text: str
    """Authors (year). Title. Where."""
    url: str = ""
    """Where to read it; empty, or an http(s) address."""
    source: str = ""
    """The entry as it stands in the file."""


@cache
def references() -> Mapping[str, Reference]:
    """Return every entry of the bibliography by its key; empty if the file is not installed."""
    installed = Path(str(files("mechint_core"))) / "references.bib"
    checkout = Path(mechint_core.__file__).resolve().parent.parent / "references.bib"
    found = next((path for path in (installed, checkout) if path.is_file()), None)
    return parse(found.read_text(encoding="utf-8")) if found else {}


def cite(key: str) -> Reference:
    """Return the entry `key`; an unknown key stands for itself, so that a report never fails on a citation."""
    return references().get(key, Reference(key=key, text=key))


def bibtex(keys: Iterable[str]) -> str:
    """Return the entries with these keys as BibTeX; a key without an entry is named in a comment.

    >>> print(bibtex(["nobody1900"]))
    % nobody1900: not in the bibliography
    """
    return "\n".join(cite(key).source or f"% {key}: not in the bibliography" for key in keys)


def parse(bibliography: str) -> dict[str, Reference]:
    """Read BibTeX text."""
    found: dict[str, Reference] = {}
    for entry in ENTRY.finditer(bibliography):
        if entry[1].lower() not in {"comment", "string", "preamble"}:
            _, end = _value(bibliography, bibliography.index("{", entry.start()))
            made = _reference(entry[2], dict(_fields(bibliography, entry.end())))
            found[entry[2]] = replace(made, source=bibliography[entry.start() : end])
    return found


def _fields(text: str, start: int) -> Iterator[tuple[str, str]]:
    """Yield the (name, value) pairs that follow an entry's key."""
    while field := FIELD.match(text, start):
        value, start = _value(text, field.end())
        name = field[1].lower()
        yield name, value.strip() if name in {"url", "doi", "eprint"} else _plain(value)


def _value(text: str, start: int) -> tuple[str, int]:
    """Return the value that starts at `start`, without its delimiters, and where it ends."""
    if text[start : start + 1] not in {"{", '"'}:
        bare = re.compile(r"[^,}\n]*").match(text, start)
        return (bare[0], bare.end()) if bare else ("", start)
    closing = "}" if text[start] == "{" else '"'
    depth = 0
    for end in range(start + 1, len(text)):
        if text[end] == closing and depth == 0:
            return text[start + 1 : end], end + 1
        depth += (text[end] == "{") - (text[end] == "}")
    return text[start + 1 :], len(text)


def _plain(tex: str) -> str:
    """Turn TeX accents into letters and drop the rest of the markup."""

    def accented(match: re.Match[str]) -> str:
        return unicodedata.normalize("NFC", match[2] + ACCENTS[match[1]])

    text = LETTER.sub(lambda match: LETTERS[match[1]], ACCENT.sub(accented, tex))
    text = text.replace("---", "—").replace("--", "–").replace("\\&", "&").replace("~", " ")
    return " ".join(re.sub(r"\\[A-Za-z]+\s?|[{}$]|\\", "", text).split())


def _reference(key: str, entry: Mapping[str, str]) -> Reference:
    who = _authors(entry.get("author", entry.get("editor", "")))
    when = f"({entry['year']})" if "year" in entry else ""
    title = entry.get("title", key).rstrip(".")
    parts = [" ".join(part for part in (who, when) if part), title, _where(entry)]
    return Reference(key=key, text=". ".join(part for part in parts if part) + ".", url=_url(entry))


def _authors(names: str) -> str:
    """Write `Last, First and Last, First` as `Last F, Last F`."""
    people = [_author(name) for name in re.split(r"\s+and\s+", names) if name.strip()]
    return ", ".join(people[:MANY_AUTHORS]) + (" et al." if len(people) > MANY_AUTHORS else "")


def _author(name: str) -> str:
    if name == "others":
        return "et al."
    last, _, first = name.partition(",") if "," in name else (name.split()[-1], "", " ".join(name.split()[:-1]))
    initials = "".join(word[0] for word in re.split(r"[\s.\-]+", first) if word)
    return f"{last.strip()} {initials}".strip()


def _where(entry: Mapping[str, str]) -> str:
    """Return the journal with volume and pages, the book, or the series."""
    place = next((entry[name] for name in ("journal", "booktitle", "howpublished", "publisher") if name in entry), "")
    if "volume" in entry:
        place += f" {entry['volume']}" + (f"({entry['number']})" if "number" in entry else "")
    if "pages" in entry:
        place += f", {entry['pages']}"
    if not place and "eprint" in entry:
        place = f"arXiv:{entry['eprint']}"
    return place.strip(", ")


def _url(entry: Mapping[str, str]) -> str:
    if "doi" in entry:
        return "https://doi.org/" + re.sub(r"^https?://(dx\.)?doi\.org/", "", entry["doi"])
    if "eprint" in entry and "url" not in entry:
        return f"https://arxiv.org/abs/{entry['eprint']}"
    url = entry.get("url", "")
    return url if url.startswith(("https://", "http://")) else ""
