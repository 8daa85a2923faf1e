"""Tables of stored numbers: values, the ends of their intervals, what is undefined, what is not there."""

from pathlib import Path

import numpy as np
import pytest

from flows.measures import stored_table
from mechint_core.errors import NotFoundError
from mechint_core.geometry import IntrinsicDimensionConfig, intrinsic_dimension
from mechint_core.store import ActivationStore, ResultKey
from tasks.catalogue import TECHNIQUES

FEW = IntrinsicDimensionConfig(n_surrogates=0, n_calibrations=0, n_bootstrap=0)


def store_of(folder: Path, clouds: dict[int, np.ndarray]) -> ActivationStore:
    store = ActivationStore(str(folder))
    for step, cloud in clouds.items():
        key = ResultKey(run="r", technique="intrinsic_dimension", name="site", step=step)
        about = TECHNIQUES["intrinsic_dimension"].about
        store.write_result(key, intrinsic_dimension(cloud, config=FEW), about=about, config={}, provenance={})
    return store


# Known answer
def test_stored_table__reads_values_ends_and_flags_also_where_they_are_undefined(tmp_path: Path, rng):
    grid = np.indices((6, 6)).reshape(2, -1).T.astype(float)  # all neighbours equally far: no dimension
    cloud = rng.normal(size=(60, 2))
    store = store_of(tmp_path, {0: grid, 10: cloud})
    expected = intrinsic_dimension(cloud, config=FEW)
    names = [f"intrinsic_dimension/site:{each}" for each in ("two_nn", "two_nn.low", "n_points")]

    undefined, known = stored_table(store, "r", names, [0, 10])

    assert np.isnan(undefined[:2]).all()
    assert undefined[2] == 36
    assert known == [expected.two_nn.value, expected.two_nn.low, 60]


# Bad input
def test_stored_table__says_which_numbers_there_are(tmp_path: Path, rng):
    store = store_of(tmp_path, {0: rng.normal(size=(40, 2))})

    with pytest.raises(NotFoundError, match=r"has no number 'two_n'. It has: two_nn, corrected"):
        stored_table(store, "r", ["intrinsic_dimension/site:two_n"], [0])
