import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import _shapes
from mechint_core.alignment.procrustes import ProcrustesConfig, ProcrustesResult, procrustes
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.aligned_systems import aligned_systems

QUICK = ProcrustesConfig(n_permutations=0)


def angle(x, y, config=QUICK):
    return procrustes(x, y, config=config).angle.value


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


# Known answer
@pytest.mark.parametrize(("n_samples", "n_units"), [(60, 5), (20, 40), (12, 12)], ids=["tall", "wide", "square"])
def test_procrustes__recovers_a_planted_rotation(rng, n_samples, n_units):
    x, turn = rng.normal(size=(n_samples, n_units)), rotation(rng, n_units)

    found = procrustes(x @ turn, 3 * x + 7, config=QUICK)

    assert found.angle.value == pytest.approx(0, abs=1e-7)
    assert found.held_out.value <= 1 + 1e-12
    assert found.scale == pytest.approx(1 / 3, rel=1e-9)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(centred @ found.rotation, centred @ turn, atol=1e-9)


@pytest.mark.parametrize("similarity", [0.0, 0.2, 0.9, 1.0])
def test_procrustes__is_the_planted_angle(similarity):
    """Xᵀ Y is r times a rotation, exactly: the cosine is r."""
    pair = aligned_systems(80, 6, similarity=similarity, exact=True)

    assert angle(pair.x, pair.y) == pytest.approx(math.acos(math.sqrt(similarity)), abs=1e-7)


def test_procrustes__of_unlike_sizes_without_scaling_is_the_difference_of_sizes(rng):
    """Y = 3 X Q: the root mean square of X - Y Qᵀ is that of 2 X."""
    x = rng.normal(size=(50, 4))
    config = ProcrustesConfig(scaled=False, n_permutations=0)

    found = procrustes(x, 3 * x @ rotation(rng, 4), config=config).distance.value

    assert found == pytest.approx(2 * np.sqrt(np.sum((x - x.mean(axis=0)) ** 2) / 50), rel=1e-9)


def test_procrustes__of_a_narrow_system_and_its_embedding_is_zero(rng):
    x = rng.normal(size=(40, 3))

    assert angle(x, x @ rotation(rng, 7)[:3]) == pytest.approx(0, abs=1e-7)


def test_procrustes__puts_unrelated_systems_at_the_null():
    rng = generator(4, "unrelated")
    found = procrustes(rng.normal(size=(100, 8)), rng.normal(size=(100, 8)))

    assert found.angle.value == pytest.approx(found.angle.null, abs=0.1)
    assert found.held_out.p_value > 0.05
    assert "not distinguishable" in found.reading()


# Oracle
def test_procrustes__equals_scipys_disparity_and_rotation(rng):
    """scipy rotates its second, centred and of size 1, onto its first; its disparity is 1 - cos²."""
    x = rng.normal(size=(40, 5))
    y = x @ rotation(rng, 5) + rng.normal(size=(40, 5))
    found = procrustes(x, y, config=QUICK)

    _, _, disparity = scipy.spatial.procrustes(x, y)
    turn, _ = scipy.linalg.orthogonal_procrustes(y - y.mean(axis=0), x - x.mean(axis=0))

    assert found.disparity == pytest.approx(disparity, abs=1e-12)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-10)


@pytest.mark.parametrize(("p", "q"), [(3, 6), (6, 3), (50, 20)])
def test_procrustes__equals_scipy_on_padded_systems(rng, p, q):
    x, y = rng.normal(size=(30, p)), rng.normal(size=(30, q))
    one, other = (np.pad(z - z.mean(axis=0), ((0, 0), (0, max(p, q) - z.shape[1]))) for z in (x, y))
    _, total = scipy.linalg.orthogonal_procrustes(other, one)

    found = procrustes(x, y, config=QUICK)

    cosine = total / np.linalg.norm(one) / np.linalg.norm(other)
    assert found.angle.value == pytest.approx(math.acos(cosine), abs=1e-10)
    assert found.agreement.sum() == pytest.approx(cosine, abs=1e-10)


def test_procrustes__without_centring_equals_scipy(rng):
    x, y = rng.normal(size=(30, 4)) + 1, rng.normal(size=(30, 4)) + 2
    _, total = scipy.linalg.orthogonal_procrustes(y, x)

    found = angle(x, y, ProcrustesConfig(centred=False, n_permutations=0))

    assert found == pytest.approx(math.acos(total / np.linalg.norm(x) / np.linalg.norm(y)), abs=1e-10)


# Law
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_procrustes__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = rng.normal(size=(24, 5)), rng.normal(size=(24, 3))
    changed = {"orthogonal": y @ rotation(rng, 3), "isotropic scaling": scale * y, "translation": y + shift}
    assert set(changed) == set(ProcrustesResult.invariances)
    for other in changed.values():
        assert angle(x, other) == pytest.approx(angle(x, y), abs=1e-10)
    assert angle(y, x) == pytest.approx(angle(x, y), abs=1e-10)
    assert 0 <= angle(x, y) <= np.pi / 2 + 1e-12


@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), block_rows=st.integers(1, 70), threads=st.integers(1, 3))
def test_procrustes__streamed_equals_whole(seed, block_rows, threads):
    rng = generator(seed, "chunks")
    x = rng.normal(size=(60, 5)) + 30
    y = rng.normal(size=(60, 4)) + x[:, :4]
    config = ProcrustesConfig(n_permutations=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shapes, "RELABELLED_ROWS", 10)
        whole = procrustes(x, y, config=config)
        patch.setattr(_shapes, "BLOCK_ROWS", block_rows)
        with compute(Backend(threads=threads)):
            streamed = procrustes(x, y, config=config)

    assert streamed.rotates
    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-9, abs=1e-10)
    np.testing.assert_allclose(streamed.rotation, whole.rotation, atol=1e-9)


def test_procrustes__gives_the_same_bits_for_any_number_of_workers(rng):
    x, y = rng.normal(size=(1500, 3)), rng.normal(size=(1500, 3))
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(procrustes(x, y, config=ProcrustesConfig(n_permutations=9)).scalars())

    assert found[0] == found[1]


def test_procrustes__rotated_and_relabelled_nulls_agree(rng, monkeypatch):
    """Many samples, few units: means of 200 draws within 4 standard errors."""
    x, y = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    config = ProcrustesConfig(n_permutations=200)
    relabelled = procrustes(x, y, config=config).angle
    monkeypatch.setattr(_shapes, "RELABELLED_ROWS", 10)

    rotated = procrustes(x, y, config=config).angle

    assert rotated.null == pytest.approx(relabelled.null, abs=4 * 0.02 / np.sqrt(100))


@pytest.mark.calibration
@pytest.mark.parametrize(("n_samples", "n_units"), [(40, 3), (16, 30)])
def test_procrustes__p_values_are_uniform_under_the_null(n_samples, n_units):
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng, config = generator(3, "null"), ProcrustesConfig(n_permutations=49)
    decay = 1 / np.arange(1, n_units + 1)
    found = [
        procrustes(rng.normal(size=(n_samples, n_units)) * decay, rng.normal(size=(n_samples, n_units)), config=config)
        for _ in range(500)
    ]
    smooth = [each.angle.p_value - rng.uniform(0, 1 / 50) for each in found]  # ranks of 50, spread evenly

    assert stats.kstest(smooth, "uniform").statistic < 0.087
    assert stats.kstest([each.held_out.p_value for each in found], "uniform").statistic < 0.087


@pytest.mark.calibration
@pytest.mark.parametrize("similarity", [0.3, 0.8])
def test_procrustes__interval_covers_the_population_angle(similarity):
    """95 ± 3 % of 500 intervals; the binomial standard error is 1 %."""
    pairs = (aligned_systems(200, 5, similarity=similarity, seed=seed) for seed in range(500))
    found = [procrustes(pair.x, pair.y, config=QUICK).angle for pair in pairs]
    truth = math.acos(math.sqrt(similarity))

    assert 0.92 < np.mean([each.low <= truth <= each.high for each in found]) < 0.98


# Bad input
def test_procrustes__raises_on_seven_samples():
    with pytest.raises(ShapeError, match="at least 8 samples"):
        procrustes(np.eye(7, 2), np.eye(7, 2))


def test_procrustes__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        procrustes(rng.normal(size=(9, 2)), rng.normal(size=(8, 2)))


@pytest.mark.parametrize("n_units", [2, 20])
def test_procrustes__raises_on_nan(rng, n_units):
    x = rng.normal(size=(10, n_units))

    with pytest.raises(DegenerateInputError, match="must be finite"):
        procrustes(x, np.where(x == x[2, 1], np.nan, x))


@pytest.mark.parametrize("n_units", [2, 20])
def test_procrustes__raises_on_a_constant_system(rng, n_units):
    with pytest.raises(DegenerateInputError, match="must vary"):
        procrustes(np.full((10, n_units), 0.1), rng.normal(size=(10, 2)))


@pytest.mark.parametrize("options", [{"n_inference": 7}, {"n_permutations": -1}, {"level": 1.0}])
def test_procrustes__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        ProcrustesConfig(**options)
