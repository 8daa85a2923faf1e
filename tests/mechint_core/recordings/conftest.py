"""One small recording, as arrays, that every format's test writes in that format's own way."""

from types import SimpleNamespace

import numpy as np
import pytest

from mechint_core.random import generator


@pytest.fixture
def session():
    """12 presentations of 4 conditions in 2 sessions, 6 time steps, 5 channels in 2 regions."""
    rng = generator(0, "session")
    return SimpleNamespace(
        responses=rng.normal(size=(12, 6, 5)),
        condition=np.array(["cat", "dog", "owl", "ape"] * 3),
        session=np.repeat([1, 2, 2], 4),
        region=np.array(["V4", "V4", "IT", "IT", "IT"]),
        position=rng.normal(size=(5, 3)),
        time=np.array([-0.1, 0.0, 0.1, 0.2, 0.3, 0.4]),
    )


@pytest.fixture
def assert_same(session):
    """Say whether a recording is the fixture's."""

    def check(recording, *, time=True, position=True, region=True, sessions=True):
        expected = session.responses if time else session.responses[:, 0]
        assert recording.responses == pytest.approx(expected)
        assert recording.condition.tolist() == session.condition.tolist()
        if sessions:
            assert recording.session.tolist() == session.session.tolist()
        if region:
            assert recording.region.tolist() == session.region.tolist()
        if time:
            assert recording.time == pytest.approx(session.time)
        if position:
            assert recording.position == pytest.approx(session.position)

    return check
