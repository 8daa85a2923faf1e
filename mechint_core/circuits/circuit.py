"""A circuit: the edges of a computational graph that implement a behaviour, and how they were found.

A node is a part of a model: `input`, `layers.0.attention.1` (head 1), `layers.0.mlp`, `output`. An edge (sender,
receiver) is what one writes to the residual stream and the other reads from it. Where a receiver ends in `:query`,
`:key` or `:value`, that input of the head is meant: the node is what stands before the colon.

    Circuit.of(found, config)        circuit.save("induction.json")        Circuit.load("induction.json")

The file is JSON, to be read and edited by hand. It holds all edges that were scored, not only those kept, so that
circuits of other sizes can be cut from it, and two circuits compared over the same edges.

Source: [@elhage2021].
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from jaxtyping import Bool, Float

from mechint_core.errors import ConfigurationError, CorruptStoreError, NotFoundError, ShapeError
from mechint_core.patching import Ablation, Edge, EdgeGranularity, PairedConfig, is_input, node_of
from mechint_core.result import Result

VERSION: Final = 1
"""Of the file's layout."""
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Circuit:
    """Which edges were scored, which are kept, and how both were found."""

    sender: tuple[str, ...]
    """Of every edge that was scored."""
    receiver: tuple[str, ...]
    score: Float[np.ndarray, "edge"]
    """What the method says of each edge; NaN where it says nothing."""
    kept: Bool[np.ndarray, "edge"]
    """Which of them are the circuit."""
    granularity: EdgeGranularity = "qkv"
    metric: str = "logit_difference"
    ablation: Ablation = "corrupted"
    """What edges carry that are cut."""
    components: tuple[str, ...] = ()
    """Globs of the modules whose writes the graph joins, where not the default ones (attentions, mlp or ffn)."""
    method: str = ""
    """The technique that found it."""
    discovered_on: tuple[str, ...] = ()
    """Fingerprints of the prompt pairs it was found on, as `PromptPairs.fingerprints` gives them."""
    model: str = ""
    """What the model is, in words."""

    def __post_init__(self) -> None:
        n_edges = len(self.sender)
        lengths = {"receiver": len(self.receiver), "score": len(self.score), "kept": len(self.kept)}
        if n_edges == 0 or any(length != n_edges for length in lengths.values()):
            raise ShapeError(
                f"a circuit must have one receiver, score and kept per sender, {n_edges} >= 1. Got {lengths}."
            )
        if len(set(self.edges)) != n_edges:
            raise ConfigurationError(f"every edge must be there once. Got {_twice(self.edges)} again.")
        for name, value, known in (
            ("granularity", self.granularity, get_args(EdgeGranularity)),
            ("ablation", self.ablation, get_args(Ablation)),
        ):
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}. Got {value!r}.")

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges that were scored."""
        return tuple(zip(self.sender, self.receiver, strict=True))

    @property
    def kept_edges(self) -> tuple[Edge, ...]:
        """The edges of the circuit, in the order of `edges`."""
        return tuple(edge for edge, kept in zip(self.edges, self.kept, strict=True) if kept)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that the circuit's edges join, in the order in which edges name them."""
        named = (name for sender, receiver in self.kept_edges for name in (sender, node_of(receiver)))
        return tuple(dict.fromkeys(named))

    @property
    def split_input(self) -> bool:
        """Whether the input is taken apart by position: senders `input@0`, `input@1`, ..."""
        return any(is_input(sender) and sender != "input" for sender in self.sender)

    @property
    def size(self) -> int:
        """Number of edges kept."""
        return int(self.kept.sum())

    def pruned(self) -> "Circuit":
        """Return the circuit without edges that are on no way from the input to the output.

        What such an edge carries reaches nothing, or comes from nothing but what was cut.
        """
        return replace(self, kept=on_ways(self.edges, self.kept))

    def with_kept(self, kept: Bool[np.ndarray, "edge"]) -> "Circuit":
        """Return the same edges and scores with others kept."""
        return replace(self, kept=kept)

    def mask(self, edges: Sequence[Edge]) -> Bool[np.ndarray, "edge"]:
        """Return, for each of `edges` (of a model's graph), whether the circuit keeps it.

        Raises
        ------
        NotFoundError
            If an edge that the circuit keeps is not among them: the circuit belongs to another model, or granularity.
        """
        here, kept = set(edges), set(self.kept_edges)
        lost = sorted(kept - here)
        if lost:
            shown = ", ".join(f"{one} -> {other}" for one, other in lost[:_SHOWN])
            raise NotFoundError(
                f"every edge of a circuit must be an edge of the model. Got {len(lost)} that are not: {shown}. "
                f"The circuit's granularity is {self.granularity!r}."
            )
        return np.array([edge in kept for edge in edges], dtype=bool)

    def save(self, path: Path | str) -> None:
        """Write the circuit as JSON; the file appears whole."""
        path = Path(path)
        beside = path.with_name(path.name + ".partial")
        beside.write_text(self.to_json(), encoding="utf-8")
        beside.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> "Circuit":
        """Read a circuit that `save` wrote.

        Raises
        ------
        NotFoundError
            If there is no such file.
        CorruptStoreError
            If it is not the JSON of a circuit, or of a version that is not known here.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"a circuit must be a JSON file. Got no file {path}.")
        return cls.from_json(path.read_text(encoding="utf-8"), where=str(path))

    def to_json(self) -> str:
        """Return the circuit as JSON, one edge per line."""
        about: dict[str, Any] = {
            "mechint_circuit": VERSION,
            "model": self.model,
            "method": self.method,
            "metric": self.metric,
            "ablation": self.ablation,
            "granularity": self.granularity,
            "components": list(self.components),
            "discovered_on": list(self.discovered_on),
        }
        scores = [None if np.isnan(each) else float(each) for each in self.score]
        lines = [
            json.dumps({"sender": sender, "receiver": receiver, "score": score, "kept": bool(kept)})
            for sender, receiver, score, kept in zip(self.sender, self.receiver, scores, self.kept, strict=True)
        ]
        return f"{json.dumps(about, indent=1)[:-2]},\n" + ' "edges": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "the text") -> "Circuit":
        """Read what `to_json` wrote.

        Raises
        ------
        CorruptStoreError
            If it is not the JSON of a circuit, or of a version that is not known here.
        """
        about = _parsed(text, where)
        try:
            edges: list[dict[str, Any]] = about["edges"]
            scores = [np.nan if each["score"] is None else float(each["score"]) for each in edges]
            return cls(
                sender=tuple(str(each["sender"]) for each in edges),
                receiver=tuple(str(each["receiver"]) for each in edges),
                score=np.array(scores, dtype=np.float64),
                kept=np.array([bool(each["kept"]) for each in edges], dtype=bool),
                granularity=about["granularity"],
                metric=about["metric"],
                ablation=about["ablation"],
                components=tuple(str(each) for each in about.get("components", ())),
                method=about["method"],
                discovered_on=tuple(str(each) for each in about["discovered_on"]),
                model=about["model"],
            )
        except (KeyError, TypeError) as problem:
            raise CorruptStoreError(f"{where} must hold a circuit. Got one without {problem}.") from problem

    @classmethod
    def of(cls, found: Result, config: PairedConfig, *, model: str = "") -> "Circuit":
        """Make a circuit of what `edge_attribution`, `edge_patching` or `acdc` found, and the config they were given.

        Raises
        ------
        NotFoundError
            If it is the result of another technique, which has no edges.
        """
        fields = {**found.arrays(), **found.labels()}
        return cls.from_fields(fields, config=asdict(config), method=found.technique, model=model)

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], *, config: Mapping[str, Any] | None = None, method: str = "", model: str = ""
    ) -> "Circuit":
        """Make a circuit of a stored Result: its labels and arrays, by name, and the config that made it.

        Raises
        ------
        NotFoundError
            If sender, receiver, score or kept is missing.
        """
        lost = [name for name in ("sender", "receiver", "score", "kept") if name not in fields]
        if lost:
            raise NotFoundError(
                f"a circuit's result must have sender, receiver, score and kept. Got none of the name {lost[0]!r}; "
                f"there are: {', '.join(fields) or 'none'}."
            )
        of = config or {}
        options = {name: value for name in ("granularity", "metric", "ablation") if (value := of.get(name))}
        return cls(
            sender=tuple(str(each) for each in fields["sender"]),
            receiver=tuple(str(each) for each in fields["receiver"]),
            score=np.asarray(fields["score"], dtype=np.float64),
            kept=np.asarray(fields["kept"]).astype(bool),
            components=tuple(str(each) for each in of.get("components", ())),
            discovered_on=tuple(str(each) for each in fields.get("discovered_on", ())),
            method=method,
            model=model,
            **options,
        )


def on_ways(edges: Sequence[Edge], kept: Bool[np.ndarray, "edge"]) -> Bool[np.ndarray, "edge"]:
    """Return which kept edges are on a way of kept edges from an input to the output."""
    chosen = [(one, node_of(other)) for (one, other), keep in zip(edges, kept, strict=True) if keep]
    begins = {one for one, _ in chosen if is_input(one)}
    fed = _reached(begins, chosen)
    used = _reached({"output"}, [(other, one) for one, other in chosen])
    on_way = [one in fed and node_of(other) in used for one, other in edges]
    return np.asarray(kept & np.array(on_way, dtype=bool))


def _reached(start: set[str], edges: Iterable[Edge]) -> set[str]:
    """Return the nodes that can be reached along edges."""
    onward: dict[str, list[str]] = {}
    for one, other in edges:
        onward.setdefault(one, []).append(other)
    reached, ahead = set(start), list(start)
    while ahead:
        for node in onward.get(ahead.pop(), ()):
            if node not in reached:
                reached.add(node)
                ahead.append(node)
    return reached


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except json.JSONDecodeError as problem:
        raise CorruptStoreError(f"{where} must be JSON. Got: {problem}.") from problem
    if not isinstance(about, dict) or about.get("mechint_circuit") != VERSION:
        version = about.get("mechint_circuit") if isinstance(about, dict) else None
        raise CorruptStoreError(f"{where} must be a circuit of version {VERSION}. Got {version}.")
    return about


def _twice(edges: Sequence[Edge]) -> str:
    seen: set[Edge] = set()
    for edge in edges:
        if edge in seen:
            return f"{edge[0]} -> {edge[1]}"
        seen.add(edge)
    return ""
