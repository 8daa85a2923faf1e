import doctest
from functools import partial

import numpy as np
import pytest
import torch

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.fractals import (
    DetrendedFluctuationAnalysisConfig,
    FractalTracker,
    HiguchiFractalDimensionConfig,
    detrended_fluctuation_analysis,
    fractal_tracker,
    higuchi_fractal_dimension,
)
from mechint_core.fractals.fractal_tracker import series_of_hidden

HIGUCHI = partial(higuchi_fractal_dimension, config=HiguchiFractalDimensionConfig(n_bootstrap=0, n_surrogates=0))
DFA = partial(
    detrended_fluctuation_analysis,
    config=DetrendedFluctuationAnalysisConfig(scales=(8, 16, 32), n_bootstrap=0, n_surrogates=0),
)


# Known answer
def test_fractal_tracker__measures_every_few_steps_and_hands_results_on(rng):
    written = []
    tracker = FractalTracker([HIGUCHI, DFA], written.append, every=3)
    hidden = rng.normal(size=(2, 64, 3))

    returned = [tracker(step, hidden) for step in range(1, 8)]

    assert [(each.step, each.result.technique) for each in written] == [
        (step, technique)
        for step in (3, 6)
        for technique in ("higuchi_fractal_dimension", "detrended_fluctuation_analysis")
    ]
    assert [each for found in returned for each in found] == written
    assert [tracker.due(step) for step in (0, 1, 3)] == [True, False, True]


# Oracle
def test_fractal_tracker__result_is_that_of_the_technique_on_every_unit_of_every_sequence(rng):
    hidden = torch.tensor(rng.normal(size=(2, 64, 3)), requires_grad=True)

    (found,) = FractalTracker([HIGUCHI], every=1)(1, hidden)

    series = np.stack([hidden[i, :, u].detach().numpy() for i in range(2) for u in range(3)], axis=1)
    assert found.result.dimension.tolist() == HIGUCHI(series).dimension.tolist()
    assert found.seconds > 0


# Law
def test_series_of_hidden__reads_every_layout(rng):
    hidden = rng.normal(size=(2, 64, 3))
    expected = series_of_hidden(hidden)

    assert np.array_equal(series_of_hidden(torch.tensor(hidden)), expected)
    assert np.array_equal(series_of_hidden(hidden.transpose(1, 0, 2), time_axis=0), expected)
    assert np.array_equal(series_of_hidden(hidden[0]), hidden[0])
    assert np.array_equal(series_of_hidden(hidden[:, :, 0], time_axis=-1), hidden[:, :, 0].T)
    assert np.array_equal(series_of_hidden(hidden[0, :, 0]), hidden[0, :, :1])


def test_fractal_tracker__digest_names_the_series(rng):
    tracker = FractalTracker([HIGUCHI], every=1)
    hidden = rng.normal(size=(64, 3))

    one, again, other = tracker(1, hidden)[0], tracker(2, hidden)[0], tracker(3, hidden + 1)[0]

    assert one.digest == again.digest
    assert one.digest != other.digest


def test_fractal_tracker__examples_are_true():
    globs = {"np": np, "higuchi_fractal_dimension": higuchi_fractal_dimension}

    assert doctest.testmod(fractal_tracker, extraglobs=globs).failed == 0


# Bad input
@pytest.mark.parametrize(("measures", "every"), [([], 1), ([HIGUCHI], 0)])
def test_fractal_tracker__raises_on_an_impossible_option(measures, every):
    with pytest.raises(ConfigurationError, match="needs a technique and every >= 1"):
        FractalTracker(measures, every=every)


@pytest.mark.parametrize(("shape", "axis"), [((), -2), ((20, 3), 2)])
def test_fractal_tracker__raises_where_there_is_no_time_axis(shape, axis):
    with pytest.raises(ShapeError, match="must have time on axis"):
        FractalTracker([HIGUCHI], every=1, time_axis=axis)(1, np.ones(shape))


def test_fractal_tracker__raises_what_the_technique_and_the_writer_raise(rng):
    hidden = rng.normal(size=(64, 3))
    with pytest.raises(DegenerateInputError, match="must be finite"):
        FractalTracker([HIGUCHI], every=1)(1, np.where(hidden > 1, np.nan, hidden))
    with pytest.raises(ZeroDivisionError):
        FractalTracker([HIGUCHI], lambda _: 1 / 0, every=1)(1, hidden)
