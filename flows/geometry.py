"""From a configuration's `geometry` sections to analyses: what describes a site, and what follows it through training.

    each site of each checkpoint      one analysis per technique of `DESCRIBING`
    each site, over all checkpoints   one per technique of `FOLLOWING`
    all sites, over all checkpoints   dimension_profile, of the stored dimensions

Where only one checkpoint is looked at, nothing is followed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.choices import chosen_steps
from flows.sections import AnalysisSection, GeometrySection
from tasks.catalogue import TECHNIQUES

FOLLOWING: Mapping[str, str] = {}
"""What follows a description through training -> the technique that must be asked for."""


def geometry_analyses(
    sections: Sequence[GeometrySection], sites: Mapping[str, tuple[int, ...]], steps: Sequence[int]
) -> list[AnalysisSection]:
    """Return what the sections ask of these recorded sites and checkpoints."""
    found: list[AnalysisSection] = []
    for section in sections:
        found += [_analysis(section, technique) for technique in section.techniques]
        if len(chosen_steps(section.steps, steps)) > 1:
            asked = [follows for follows, of in FOLLOWING.items() if of in section.techniques]
            found += [_analysis(section, technique) for technique in asked]
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
