"""What shape has what each site represents? Dimension, loops, distances along it; and when do they change?"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.collect_activations import RUNNER, record
from flows.configuration import RunSection, configuration
from flows.monitor_training import analyse
from flows.pending import raise_failures
from flows.plan import make_plan
from flows.report import compose_report
from flows.sections import GeometrySection
from mechint_core.errors import ConfigurationError
from mechint_core.store import ActivationStore
from tasks.publish import publish
from tasks.settings import settings


@dataclass(frozen=True, slots=True)
class Described:
    """What was found, in words, and where it is."""

    readings: Mapping[tuple[str, str], str]
    """Technique and site -> what the last checkpoint, or the course through training, says."""
    report: Path


@flow(name="describe-geometry", task_runner=RUNNER, validate_parameters=False)
def describe_geometry(config: RunSection | Path) -> Described:
    """Describe every chosen site at every chosen checkpoint, and write the report. Nothing else is analysed.

    A configuration without a `geometry` section is taken to ask for all of it, everywhere.

    Raises
    ------
    ConfigurationError
        If the configuration records nothing.
    AnalysisError
        If something failed; the rest is stored.
    """
    started = datetime.now(UTC)
    asked = configuration(config)
    if asked.collect is None:
        raise ConfigurationError("the configuration must record sites under `collect` to describe. Got no `collect`.")
    only = {"analyses": [], "dictionaries": [], "circuits": [], "brains": [], "findings": None}
    plan = make_plan(
        asked.model_copy(update={**only, "geometry": asked.geometry or [GeometrySection()]}),
        settings().store_location,
    )
    record(plan)
    failures: list[str] = []
    analyse(plan, failures)
    published = publish(plan.store, plan.config.run, {}, plan.digests(), str(flow_run.get_id() or ""))
    report = compose_report(plan, published, started=started)
    raise_failures(failures)
    store, described = ActivationStore(plan.store), plan.outline()
    keys = [key for key in store.results(run=plan.config.run) if key.technique in described]
    latest = [key for key in keys if key.step in (None, plan.steps[-1])]
    return Described({(key.technique, key.name): store.result(key).reading for key in latest}, report)
