"""brain_trajectory: whether training makes a site brain-like, and when."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.alignment import BrainTrajectoryConfig, brain_trajectory
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.random import generator

STEP = np.array([0, 10, 20, 40, 80, 160])


def course(score, noise=0.02, shared=0.1, n_draws=400, seed=0):
    rng = generator(seed, "course")
    common = shared * rng.normal(size=n_draws)
    return [each + common + noise * rng.normal(size=n_draws) for each in score]


def follow(score, **options):
    score = np.asarray(score, dtype=float)
    return brain_trajectory(score, course(score, **options), np.full(len(score), 0.9), STEP[: len(score)])


# Known answer
def test_brain_trajectory__finds_when_the_score_rises_for_good():
    found = follow([0.1, 0.1, 0.1, 0.5, 0.6, 0.6])

    assert found.onset == 40
    assert found.half_rise.value == 40
    assert found.half_rise.low <= 40 <= found.half_rise.high
    assert found.gain.value == pytest.approx(0.5)
    assert found.gain.p_value < 0.01
    assert found.gain.high - found.gain.low < 0.2 * (found.high[0] - found.low[0]) + 0.2
    assert "from step 40 on" in found.reading()


def test_brain_trajectory__a_rise_that_is_lost_again_has_no_onset():
    found = follow([0.1, 0.1, 0.6, 0.6, 0.1, 0.1])

    assert np.isnan(found.onset)
    assert len(found.onset_mark) == 0


def test_brain_trajectory__nothing_happens_where_nothing_changes():
    found = follow([0.3] * 6)

    assert np.isnan(found.onset)
    assert found.gain.p_value > 0.05
    assert "does not change" in found.reading()


# Law
@given(st.floats(-5, 5), st.floats(0.1, 10))
def test_brain_trajectory__does_not_depend_on_the_scale_of_the_scores(shift, scale):
    score = np.array([0.1, 0.2, 0.5, 0.6])
    draws = course(score)
    one = brain_trajectory(score, draws, score, STEP[:4])
    other = brain_trajectory(scale * score + shift, [scale * each + shift for each in draws], score, STEP[:4])

    assert (one.onset, one.half_rise) == (other.onset, other.half_rise)
    assert other.gain.value == pytest.approx(scale * one.gain.value, rel=1e-6)


def test_brain_trajectory__an_onset_where_nothing_rises_is_as_rare_as_its_level_says():
    rng = generator(0, "chance")
    alarms = 0
    for experiment in range(400):
        score = 0.3 + 0.02 * rng.normal(size=6)  # every checkpoint off by what the draws say it is
        draws = course(score, noise=0.02, seed=experiment, n_draws=200)
        alarms += np.isfinite(brain_trajectory(score, draws, score, STEP).onset)

    assert alarms / 400 < 0.08


# Bad input
def test_brain_trajectory__refuses_what_does_not_fit(without_shape_checks):
    score = np.array([0.1, 0.2])
    draws = course(score)
    with pytest.raises(ShapeError, match="at least 2 checkpoints"):
        brain_trajectory(score[:1], draws[:1], score[:1], STEP[:1])
    with pytest.raises(ShapeError, match="at least 2 checkpoints"):
        brain_trajectory(score, draws, score, STEP)
    with pytest.raises(ShapeError, match="the same draws"):
        brain_trajectory(score, [draws[0], draws[1][:5]], score, STEP[:2])
    with pytest.raises(DegenerateInputError, match="steps must rise"):
        brain_trajectory(score, draws, score, STEP[:2][::-1].copy())
    with pytest.raises(DegenerateInputError, match="draws must be finite"):
        brain_trajectory(score, [each * np.nan for each in draws], score, STEP[:2])
    with pytest.raises(ConfigurationError, match="level"):
        BrainTrajectoryConfig(level=2.0)
