"""The shape of every site at every checkpoint: asked for in a section, or by the command alone; reported, run again."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import mechint
from flows.configuration import load_configuration
from flows.describe_geometry import describe_geometry
from flows.plan import make_plan
from flows.sections import DESCRIBING
from mechint_core.errors import ConfigurationError
from mechint_core.store import ActivationStore, ResultKey
from tasks.settings import settings
from tests.flows.tiny import STEPS, write_run

pytestmark = pytest.mark.usefixtures("prefect_api", "home")

FEW = {
    "persistent_homology": {"n_surrogates": 19, "n_resamples": 3},
    "geodesic_distances": {"n_surrogates": 19, "n_landmarks": 10, "n_bootstrap": 19},
    "intrinsic_dimension": {"n_surrogates": 19, "n_calibrations": 1, "n_bootstrap": 19},
    "persistence_vineyard": {"n_surrogates": 19, "n_resamples": 3},
}


def stored(technique: str, name: str, step: int | None):
    key = ResultKey(run="tiny", technique=technique, name=name, step=step)
    return ActivationStore(settings().store_location).result(key)


# Known answer
def test_describe_geometry__describes_every_site_and_checkpoint_and_nothing_else(tmp_path: Path):
    section = {"label": "probe.label", "options": FEW}

    found = describe_geometry(write_run(tmp_path, geometry=[section]))

    keys = list(ActivationStore(settings().store_location).results(run="tiny"))
    described = {(key.technique, key.name, key.step) for key in keys}
    assert {(each, site, step) for each in DESCRIBING for site in ("act", "out") for step in STEPS} <= described
    assert {("persistence_vineyard", site, None) for site in ("act", "out")} <= described
    assert "cka" not in {key.technique for key in keys}
    last = stored("persistent_homology", "act", STEPS[-1])
    assert last.flags["n_points"] == 8
    profile = stored("dimension_profile", "measures", None)
    assert profile.labels["site"] == ("act", "out")
    assert profile.arrays["step"].tolist() == list(STEPS)
    dimension = stored("intrinsic_dimension", "out", STEPS[0]).estimates["two_nn"].value
    assert profile.arrays["dimension"][1, 0] == dimension
    assert found.readings["persistent_homology", "act"] == last.reading
    assert found.readings["dimension_profile", "measures"] == profile.reading
    assert "persistent" in found.report.read_text()


# Law
def test_describe_geometry__a_second_run_computes_nothing(tmp_path: Path):
    section = {"techniques": ["persistent_homology"], "options": FEW, "sites": ["out"], "steps": ["last"]}
    path = write_run(tmp_path, geometry=[section])
    describe_geometry(path)
    made = stored("persistent_homology", "out", STEPS[-1]).provenance["made_at"]

    describe_geometry(path)

    assert stored("persistent_homology", "out", STEPS[-1]).provenance["made_at"] == made


@pytest.mark.slow
def test_describe_geometry__same_numbers_by_threads_by_processes_and_on_a_cluster(tmp_path: Path, monkeypatch):
    from distributed import LocalCluster

    section = {"label": "probe.label", "options": FEW, "sites": ["out"], "steps": ["last"]}
    path, found = write_run(tmp_path, geometry=[section]), {}
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        where = {"threads": {}, "processes": {"PROCESSES": "2"}, "cluster": {"DASK_ADDRESS": cluster.scheduler_address}}
        for place, given in where.items():
            with monkeypatch.context() as patch:
                patch.setenv("MECHINT_HOME", str(tmp_path / place))
                for name, value in given.items():
                    patch.setenv(f"MECHINT_{name}", value)
                settings.cache_clear()
                describe_geometry(path)
                store = ActivationStore(settings().store_location)
                found[place] = {key: store.result_provenance(key)["digest"] for key in store.results(run="tiny")}

    assert {"persistent_homology", "geodesic_distances"} <= {key.technique for key in found["threads"]}
    assert found["processes"] == found["cluster"] == found["threads"]


def test_plan__geometry_is_part_of_a_run(tmp_path: Path):
    path = write_run(tmp_path, analyses=[], geometry=[{}, {"name": "end", "steps": ["last"], "sites": ["out"]}])

    outline = make_plan(load_configuration(path), settings().store_location).outline()
    dry = CliRunner().invoke(mechint, ["run", str(path), "--dry-run"])

    assert outline["persistent_homology"] == 2 * len(STEPS) + 1
    assert (outline["persistence_vineyard"], outline["dimension_profile"]) == (2, 1)  # one step is no course
    assert "persistent_homology" in dry.output


# Bad input
@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"techniques": ["persistent_homolgy"]}, "describes no geometry; did you mean 'persistent_homology'"),
        ({"label": "elsewhere.label"}, "geometry.0.label: 'elsewhere.label' must be `dataset.field`"),
        ({"options": {"persistent_homology": {"max_dimensions": 2}}}, "has no option 'max_dimensions'"),
    ],
)
def test_configuration__refuses_a_geometry_that_makes_no_sense(tmp_path: Path, section, match):
    with pytest.raises(ConfigurationError, match=match):
        load_configuration(write_run(tmp_path, geometry=[section]))


def test_plan__says_which_fields_there_are(tmp_path: Path):
    path = write_run(tmp_path, geometry=[{"label": "probe.colour"}])

    with pytest.raises(ConfigurationError, match=r"geometry.0.label: 'colour' is not a field of probe \(x, label\)"):
        make_plan(load_configuration(path), settings().store_location)


def test_describe_geometry__needs_something_recorded(tmp_path: Path):
    circuit = {"name": "c", "clean": "probe.x", "corruption": {}, "target": "probe.label"}

    with pytest.raises(ConfigurationError, match="must record sites under `collect`"):
        describe_geometry(write_run(tmp_path, analyses=[], collect=None, circuits=[circuit]))


@pytest.mark.parametrize(
    "changes",
    [
        {"geometry": [{"sites": ["act"]}, {"sites": ["*"]}]},
        {"analyses": [{"technique": "persistent_homology", "sites": ["out"]}], "geometry": [{"sites": ["*"]}]},
        {"analyses": [{"technique": "persistent_homology", "sites": [each]} for each in ("act", "a*")]},
    ],
)
def test_plan__refuses_what_would_be_stored_in_one_place(tmp_path: Path, changes):
    path = write_run(tmp_path, **({"analyses": []} | changes))

    with pytest.raises(ConfigurationError, match="is there twice, under `analyses` or `geometry`: give one a `name`"):
        make_plan(load_configuration(path), settings().store_location)


def test_plan__the_same_at_other_steps_or_under_another_name_is_not_twice(tmp_path: Path):
    homology = {"technique": "persistent_homology", "sites": ["act"]}
    again = [{**homology, "sites": ["a*"], "steps": [10]}, {**homology, "steps": [0, 20], "name": "ends"}]

    outline = make_plan(
        load_configuration(write_run(tmp_path, analyses=[{**homology, "steps": [0, 20]}, *again])),
        settings().store_location,
    ).outline()

    assert outline == {"persistent_homology": 5}
