"""From a configuration's `geometry` sections to analyses: what describes a site, and what follows it through training.

    each site of each checkpoint      one analysis per technique of `DESCRIBING`
    each site, over all checkpoints   one per technique of `FOLLOWING`
    all sites, over all checkpoints   dimension_profile, of the stored dimensions

Where only one checkpoint is looked at, nothing is followed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.choices import chosen_steps, site_labels
from flows.sections import AnalysisSection, GeometrySection
from tasks.catalogue import TECHNIQUES

FOLLOWING: Mapping[str, str] = {"persistent_homology": "persistence_vineyard"}
"""What describes a site -> what follows that through training."""
DIMENSION = "intrinsic_dimension"


def geometry_analyses(
    sections: Sequence[GeometrySection], sites: Mapping[str, tuple[int, ...]], steps: Sequence[int]
) -> list[AnalysisSection]:
    """Return what the sections ask of these recorded sites and checkpoints."""
    found: list[AnalysisSection] = []
    for section in sections:
        found += [_analysis(section, technique) for technique in section.techniques]
        if len(chosen_steps(section.steps, steps)) > 1:
            found += [_analysis(section, FOLLOWING[each]) for each in section.techniques if each in FOLLOWING]
            if DIMENSION in section.techniques:
                found.append(_profile(section, site_labels(sites, section.sites, "geometry")))
    return found


def _analysis(section: GeometrySection, technique: str) -> AnalysisSection:
    takes_label = any(each.name == "label" for each in TECHNIQUES[technique].parameters)
    inputs: dict[str, Any] = {"label": section.label} if section.label and takes_label else {}
    return AnalysisSection(
        technique=technique,
        sites=section.sites,
        inputs=inputs,
        config=section.options.get(technique, {}),
        steps=section.steps,
        name=section.name,
    )


def _profile(section: GeometrySection, labels: Sequence[str]) -> AnalysisSection:
    """Return the analysis of the stored dimensions of all sites together."""
    stored = [f"{DIMENSION}/{section.name}.{each}" if section.name else f"{DIMENSION}/{each}" for each in labels]
    parts = {"dimension": "two_nn", "low": "two_nn.low", "high": "two_nn.high"}
    return AnalysisSection(
        technique="dimension_profile",
        inputs={parameter: [f"{each}:{part}" for each in stored] for parameter, part in parts.items()},
        config={"names": list(labels)},
        steps=section.steps,
        name=section.name,
    )
