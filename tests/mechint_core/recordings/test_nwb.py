"""NWB files that pynwb wrote, read without it: spikes of units, and samples of a series."""

from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from mechint_core.errors import RecordingError
from mechint_core.recordings import load_recording

pynwb = pytest.importorskip("pynwb")
pytestmark = pytest.mark.oracle

STARTS = np.array([1.0, 3.0, 5.0, 7.0])
CONDITIONS = ["grating", "face", "grating", "face"]


@pytest.fixture
def file(tmp_path, rng):
    """Write one electrode table, 3 units, 2 series and 4 trials, as a lab does; return the path and what is in it."""
    nwb = pynwb.NWBFile(
        session_description="a session",
        identifier="one",
        session_start_time=datetime(2026, 1, 2, tzinfo=UTC),
        session_id="day1",
    )
    nwb.subject = pynwb.file.Subject(subject_id="mouse 7", species="Mus musculus")
    device = nwb.create_device(name="probe")
    group = nwb.create_electrode_group(name="shank", description="one", location="unknown", device=device)
    for index, area in enumerate(["VISp", "VISp", "VISl", "VISl"]):
        nwb.add_electrode(x=float(index), y=0.0, z=2.0 * index, location=area, group=group)
    nwb.add_unit_column(name="quality", description="by hand")
    spikes = [np.sort(rng.uniform(0, 10, size=n)) for n in (200, 50, 0)]
    for index, times in enumerate(spikes):
        nwb.add_unit(spike_times=times, electrodes=[index + 1], quality=["good", "good", "noise"][index])
    nwb.add_trial_column(name="stimulus_name", description="what was shown")
    nwb.add_trial_column(name="contrast", description="of it")
    for start, name in zip(STARTS, CONDITIONS, strict=True):
        nwb.add_trial(start_time=start, stop_time=start + 0.5, stimulus_name=name, contrast=0.8)
    lfp = rng.integers(-1000, 1000, size=(1000, 4)).astype(np.int16)
    table = nwb.create_electrode_table_region(region=[0, 1, 2, 3], description="all")
    series = pynwb.ecephys.ElectricalSeries(
        name="lfp", data=lfp, electrodes=table, starting_time=0.5, rate=100.0, conversion=1e-6
    )
    nwb.add_acquisition(series)
    pupil = pynwb.TimeSeries(name="pupil", data=np.arange(100.0), unit="mm", timestamps=np.arange(100) * 0.1)
    nwb.create_processing_module(name="behaviour", description="eyes").add(pupil)
    path = tmp_path / "mouse.nwb"
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(nwb)
    return path, spikes, lfp * 1e-6


# Known answer
def test_nwb__rates_of_units_over_trials(file):
    path, spikes, _ = file

    found = load_recording(path, bad_channels="keep")

    expected = [[((each >= start) & (each < start + 0.5)).sum() / 0.5 for each in spikes] for start in STARTS]
    np.testing.assert_array_equal(found.responses, expected)
    assert found.condition.tolist() == CONDITIONS
    assert found.subjects.tolist() == ["mouse 7"]
    assert found.sessions.tolist() == ["day1"]
    assert found.region.tolist() == ["VISp", "VISl", "VISl"]
    assert found.position.tolist() == [[1.0, 0.0, 2.0], [2.0, 0.0, 4.0], [3.0, 0.0, 6.0]]
    assert found.units == "spikes/s"
    assert found.sample_descriptors["intervals/trials/contrast"].tolist() == [0.8] * 4
    assert found.channel_descriptors["quality"].tolist() == ["good", "good", "noise"]


def test_nwb__counts_of_units_in_steps_of_a_window(file):
    path, spikes, _ = file

    found = load_recording(path, window=(-0.1, 0.3), step=0.1, region="VISp", fields={"responses": "units"})

    edges = [start - 0.1 + 0.1 * np.arange(5) for start in STARTS]
    np.testing.assert_array_equal(found.responses[:, :, 0], [np.histogram(spikes[0], each)[0] for each in edges])
    assert found.time == pytest.approx([-0.05, 0.05, 0.15, 0.25])
    assert found.units == "spikes"


def test_nwb__samples_of_a_series_in_a_window(file):
    path, _, lfp = file

    found = load_recording(path, window=(0.0, 0.2), fields={"responses": "lfp"})

    first = ((STARTS - 0.5) * 100).round().astype(int)
    assert found.responses.shape == (4, 20, 4)
    assert found.responses == pytest.approx(np.stack([lfp[each : each + 20] for each in first]))
    assert found.time == pytest.approx(np.arange(20) / 100)
    assert found.region.tolist() == ["VISp", "VISp", "VISl", "VISl"]
    assert found.units == "volts"


def test_nwb__means_of_a_series_over_trials_and_what_was_not_recorded(file):
    path, _, lfp = file

    mean = load_recording(path, fields={"responses": "acquisition/lfp"}, region="VISl")
    early = load_recording(path, window=(-0.7, 0.3), step=0.1, fields={"responses": "lfp"}, bad_channels="keep")

    assert mean.responses[1] == pytest.approx(lfp[250:300, 2:].mean(axis=0))
    assert np.isnan(early.responses[0, :2]).all()
    assert early.responses[0, 2:] == pytest.approx(lfp[:80].reshape(8, 10, 4).mean(axis=1))


def test_nwb__series_with_times_of_its_own(file):
    path, _, _ = file

    found = load_recording(path, window=(0.0, 0.3), fields={"responses": "pupil"})

    assert found.responses[:, :, 0].tolist() == [[10, 11, 12], [30, 31, 32], [50, 51, 52], [70, 71, 72]]
    assert found.units == "mm"


# Bad input
def test_nwb__says_what_responses_could_be_cut_from(file):
    path, _, _ = file
    with h5py.File(path, "r+") as opened:
        del opened["units"]

    with pytest.raises(
        RecordingError, match=r"cut from: 'acquisition/lfp', 'processing/behaviour/pupil'. Got no choice"
    ):
        load_recording(path)


def test_nwb__raises_on_steps_that_do_not_fit_and_on_missing_trials(file):
    path, _, _ = file
    for window, step in (((0.0, 0.1), 0.2), ((0.0, 0.1), -1.0), ((0.3, 0.1), None)):
        with pytest.raises(RecordingError, match="must be cut into at least one step"):
            load_recording(path, window=window, step=step)
    with h5py.File(path, "r+") as opened:
        del opened["intervals/trials"]
    with pytest.raises(RecordingError, match=r"must have a table of trials. Its interval tables are nothing"):
        load_recording(path)
