import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from mechint_core.alignment import RSA, RSAConfig, SearchlightConfig, _stacked, rsa, searchlight
from mechint_core.alignment._conditions import Draws, relabelled_agreement
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

SCIPY = {"euclidean": "sqeuclidean", "correlation": "correlation", "cosine": "cosine"}
metrics = pytest.mark.parametrize("metric", list(SCIPY))
comparisons = pytest.mark.parametrize("comparison", ["pearson", "cosine", "spearman"])
FAST = {"n_bootstrap": 40, "n_permutations": 60}


def grid(side):
    return np.stack(np.meshgrid(*[np.arange(float(side))] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def brain(n=20, side=5, *, strength=0.0, seed=0):
    """A cube of noise; channels within 1 of its middle hear the model."""
    rng = generator(seed, "brain")
    x, position = rng.normal(size=(n, 6)), grid(side)
    y = rng.normal(size=(n, len(position)))
    source = np.linalg.norm(position - side // 2, axis=1) <= 1
    y[:, source] += strength * x @ rng.normal(size=(6, source.sum()))
    return x, y, position, source


def mapped(x, y, position=None, **options):
    return searchlight(x, y, position, config=SearchlightConfig(**options))


# Known answer
def test_searchlight__of_a_copy_in_the_noise_is_one_there(rng):
    x, y, position, source = brain()
    y[:, source] = -2 * x @ np.linalg.qr(rng.normal(size=(7, 6)))[0].T + 4
    found = mapped(x, y, position, metric="euclidean", radius=1.0)

    assert position[found.strongest_centre].tolist() == [2, 2, 2]
    assert (found.strongest.value, found.strongest.low, found.strongest.high) == pytest.approx((1, 1, 1), abs=1e-9)
    assert found.n_channels[found.strongest_centre] == source.sum() == 7


def test_searchlight__finds_the_planted_sphere_and_nothing_beyond_its_reach():
    x, y, position, source = brain(40, 7, strength=1.5)
    found = mapped(x, y, position, radius=1.0)
    reach = cdist(position, position[source]).min(axis=1) <= 1

    assert found.strongest_centre == np.ravel_multi_index((3, 3, 3), (7, 7, 7))
    assert found.p_value[source].max() <= 0.05
    assert not np.any(found.p_value[~reach] <= 0.05)
    assert found.n_significant <= reach.sum()
    assert found.n_discovered >= found.n_significant


def test_searchlight__counts_channels_and_centres_of_a_line():
    """Of ten channels in a row, each with its neighbours at distance 1, the two ends have 2, the others 3."""
    rng = generator(0, "line")
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 10))
    found = mapped(x, y, np.arange(10.0)[:, None], radius=1.0, min_channels=3, stride=3, **FAST)

    assert found.centre.tolist() == [0, 3, 6, 9]
    assert found.n_channels.tolist() == [2, 3, 3, 2]
    assert (found.n_centres, found.n_too_small, found.n_undefined) == (4, 2, 0)
    assert np.isnan(found.agreement).tolist() == [True, False, False, True]
    assert np.isnan(found.p_value).tolist() == np.isnan(found.q_value).tolist() == [True, False, False, True]
    assert found.place.tolist() == [[0, 0], [3, 0], [6, 0], [9, 0]]


def test_searchlight__over_correlated_channels_finds_the_scattered_ones_that_hear_the_model():
    """Each of three sources is heard by 8 of 60 channels in no order; the model is the first source."""
    rng = generator(0, "scattered")
    order = rng.permutation(60)
    sources = [rng.normal(size=(30, 1)) for _ in range(3)]
    y = 0.5 * rng.normal(size=(30, 60))
    for number, source in enumerate(sources):
        y[:, order[8 * number : 8 * number + 8]] += source * rng.uniform(1, 2, 8)

    found = mapped(sources[0], y, neighbourhood="correlation", n_neighbours=5, metric="euclidean")

    assert np.mean(found.p_value[order[:8]] <= 0.05) > 0.7
    assert np.all(found.p_value[order[8:24]] > 0.05)
    assert np.all(found.n_channels == 5)
    assert found.place[:, 0].tolist() == list(range(60))


def test_searchlight__dead_channels_are_undefined_and_counted():
    """Two planes of five are silent: centres on the outer one have no live neighbour."""
    x, y, position, _ = brain(strength=1.0)
    y[:, position[:, 0] <= 1] = 0.0
    found = mapped(x, y, position, radius=1.0, min_channels=4)

    assert (found.n_too_small, found.n_undefined) == (0, 25)
    assert np.array_equal(np.isnan(found.agreement), position[:, 0] == 0)
    assert np.array_equal(np.isnan(found.q_value), position[:, 0] == 0)


# Oracle
@metrics
@comparisons
def test_searchlight__equals_a_loop_of_rsa(metric, comparison):
    x, y, position, _ = brain(side=3, strength=1.0)
    options = {"metric": metric, "comparison": comparison, **FAST}
    found = mapped(x, y, position, radius=1.1, min_channels=4, **options)

    members = [np.flatnonzero(each <= 1.1) for each in cdist(position, position)]
    loop = [RSA(metric, comparison).compare(x, y[:, each]) for each in members]
    assert found.agreement == pytest.approx(loop, abs=1e-10)
    assert found.n_channels.tolist() == [len(each) for each in members]
    strongest = rsa(x, y[:, members[found.strongest_centre]], config=RSAConfig(**options)).similarity
    assert (found.strongest.low, found.strongest.high) == pytest.approx((strongest.low, strongest.high), abs=1e-9)


@comparisons
def test_searchlight__p_and_q_values_equal_the_plain_loop(comparison):
    x, y, position, _ = brain(10, 3, strength=0.5)
    found = mapped(x, y, position, metric="euclidean", comparison=comparison, radius=1.0, min_channels=4, **FAST)

    permutations = Draws(n_bootstrap=0, n_permutations=60, level=0.95, seed=0).permutations(10)
    model = pdist(x, "sqeuclidean")
    data = [pdist(y[:, each <= 1.0], "sqeuclidean") for each in cdist(position, position)]
    null = np.array([relabelled_agreement(each, model, comparison, permutations=permutations) for each in data])
    alone = (1 + np.sum(null >= found.agreement[:, None] - 1e-12, axis=1)) / 61
    corrected = [(1 + np.sum(null.max(axis=0) >= each - 1e-12)) / 61 for each in found.agreement]
    assert found.strongest.null == pytest.approx(null.max(axis=0).mean(), abs=1e-10)
    assert found.p_value == pytest.approx(corrected)
    assert found.q_value == pytest.approx(false_discovery_rate(alone))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
@pytest.mark.parametrize(("comparison", "theirs"), [("pearson", "corr"), ("spearman", "spearman")])
def test_searchlight__equals_rsatoolbox(comparison, theirs, capfd):
    from rsatoolbox.data import Dataset
    from rsatoolbox.inference import eval_fixed
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import calc_rdm
    from rsatoolbox.util.searchlight import (
        evaluate_models_searchlight,
        get_searchlight_RDMs,
        get_volume_searchlight,
    )

    x, y, position, _ = brain(strength=1.0)
    centres, neighbours = get_volume_searchlight(np.ones((5, 5, 5)), radius=2, threshold=1.0)
    rdms = get_searchlight_RDMs(y, centres, neighbours, np.arange(20), method="correlation", verbose=False)
    model = ModelFixed("model", calc_rdm(Dataset(x), method="correlation"))
    each = evaluate_models_searchlight(rdms, model, eval_fixed, method=theirs)
    expected = [float(one.evaluations.ravel()[0]) for one in each]
    inside = [set(position[c]) <= {1.0, 2.0, 3.0} for c in centres]  # theirs also takes boxes cut by the border

    found = mapped(x, y, position, radius=1.99, comparison=comparison, **FAST)

    assert found.agreement[centres][inside] == pytest.approx(np.array(expected)[inside], abs=1e-10)


# Law
@metrics
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), block=st.integers(1, 30), piece=st.integers(1, 20), threads=st.integers(1, 3))
def test_searchlight__does_not_depend_on_blocks(metric, seed, block, piece, threads):
    from importlib import import_module

    x, y, position, _ = brain(9, 3, strength=0.5, seed=seed)
    options = {"metric": metric, "radius": 1.0, **FAST}
    whole = mapped(x, y, position, **options)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(_stacked, "BLOCK_BYTES", 8 * 36 * block)
        patch.setattr(import_module("mechint_core.alignment.searchlight"), "PIECE_BYTES", 8 * 9 * 14 * piece)
        cut = mapped(x, y, position, **options)

    assert cut.scalars() == pytest.approx(whole.scalars(), abs=1e-9)
    assert cut.agreement == pytest.approx(whole.agreement, abs=1e-12, nan_ok=True)
    assert cut.q_value == pytest.approx(whole.q_value, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("neighbourhood", ["space", "correlation"])
def test_searchlight__same_seed_gives_the_same_bits_for_any_worker_count(neighbourhood):
    x, y, position, _ = brain(strength=0.5)
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            found.append(mapped(x, y, position, neighbourhood=neighbourhood, n_neighbours=8, **FAST))

    for other in found[1:]:
        assert all(np.array_equal(value, other.arrays()[name]) for name, value in found[0].arrays().items())
        assert found[0].scalars() == other.scalars()


@metrics
@comparisons
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-2, 1e2))
def test_searchlight__is_bounded_and_ignores_scale_and_turns_of_the_head(metric, comparison, seed, scale):
    x, y, position, _ = brain(9, 3, seed=seed)
    options = {"metric": metric, "comparison": comparison, "radius": 1.2, "n_bootstrap": 0, "n_permutations": 5}
    found = mapped(x, y, position, **options)
    turned = position[:, [1, 2, 0]] * [1, -1, 1] + 7

    assert np.nanmax(np.abs(found.agreement)) <= 1 + 1e-12
    assert mapped(x, scale * y, turned, **options).agreement == pytest.approx(found.agreement, abs=1e-8, nan_ok=True)


@pytest.mark.parametrize("neighbourhood", ["space", "correlation"])
def test_searchlight__follows_the_order_of_channels(neighbourhood):
    x, y, _, _ = brain(strength=0.5)
    position, order = generator(0, "places").normal(size=(125, 3)), generator(0, "order").permutation(125)
    options = {"neighbourhood": neighbourhood, "n_neighbours": 7, **FAST}
    found, shuffled = mapped(x, y, position, **options), mapped(x, y[:, order], position[order], **options)

    assert shuffled.agreement == pytest.approx(found.agreement[order], abs=1e-12)
    assert order[shuffled.strongest_centre] == found.strongest_centre


def test_searchlight__reading_says_whether_a_centre_is_significant():
    assert "no centre is distinguishable" in mapped(*brain(seed=1)[:3], radius=1.0).reading()
    assert "are significant over all" in mapped(*brain(strength=2.0)[:3], radius=1.0).reading()
    assert "no relabelling" in mapped(*brain()[:3], radius=1.0, n_permutations=0).reading()


def test_searchlight__without_draws_says_so_by_nan():
    found = mapped(*brain()[:3], radius=1.0, n_permutations=0, n_bootstrap=0)

    assert np.isnan([found.strongest.low, found.strongest.p_value, found.strongest.null, found.threshold]).all()
    assert np.isnan(np.concatenate([found.q_value, found.p_value])).all()


@pytest.mark.calibration
@comparisons
def test_searchlight__any_false_centre_has_the_chance_it_says(comparison):
    """500 brains without the model; the KS distance passes 0.087 once in 1000, the standard error of 5 % is 1 %."""
    options = {"comparison": comparison, "radius": 1.0, "min_channels": 4, "n_bootstrap": 0, "n_permutations": 199}
    found = [mapped(*brain(12, 3, seed=seed)[:3], **options) for seed in range(500)]

    assert stats.kstest([each.strongest.p_value for each in found], "uniform").statistic < 0.087
    assert 0.02 < np.mean([each.n_significant > 0 for each in found]) < 0.08


@pytest.mark.calibration
def test_searchlight__beside_a_planted_sphere_any_false_centre_is_as_rare():
    """500 brains: the sphere is found, and centres that do not reach it stay within 5 % (standard error 1 %)."""
    options = {"radius": 1.0, "min_channels": 4, "n_bootstrap": 0, "n_permutations": 199}
    inside, beyond = [], []
    for seed in range(500):
        x, y, position, source = brain(16, 5, strength=1.5, seed=seed)
        significant = mapped(x, y, position, **options).p_value <= 0.05
        reach = cdist(position, position[source]).min(axis=1) <= 1
        inside.append(significant[62])
        beyond.append(significant[~reach].any())

    assert np.mean(inside) > 0.95
    assert np.mean(beyond) < 0.08


# Bad input
def test_searchlight__raises_on_a_shape_that_is_none(without_shape_checks):
    x, y, position, _ = brain(8, 3)
    for wrong in ((x, y[0], position), (x[0], y, position), (x[:, :0], y, position)):
        with pytest.raises(ShapeError, match="Got shape"):
            mapped(*wrong)
    for wrong in ((x[:7], y), (x[:3], y[:3])):
        with pytest.raises(ShapeError, match="same conditions, at least 4"):
            mapped(*wrong, position)
    for wrong in (position[:9], position[:, 0], position + np.nan):
        with pytest.raises(ShapeError, match=r"position must be one finite row per channel, 27"):
            mapped(x, y, wrong)


def test_searchlight__raises_on_space_without_positions():
    x, y, *_ = brain(8, 3)

    with pytest.raises(ConfigurationError, match=r"position must be given .* set neighbourhood to 'correlation'"):
        mapped(x, y)


def test_searchlight__raises_on_nan():
    x, y, position, _ = brain(8, 3)

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        mapped(x, np.where(y == y[2, 1], np.nan, y), position)


def test_searchlight__raises_where_no_centre_has_an_agreement():
    x, y, position, _ = brain(8, 3)

    with pytest.raises(DegenerateInputError, match=r"at least 9 channels .* the largest has 7"):
        mapped(x, y, position, radius=1.0, min_channels=9)
    with pytest.raises(DegenerateInputError, match="dissimilarities that differ"):
        mapped(x, np.zeros_like(y), position, radius=1.0)
    with pytest.raises(DegenerateInputError, match="dissimilarities of x must differ"):
        mapped(np.eye(8), y, position, metric="euclidean")
    with pytest.raises(DegenerateInputError, match="constant row"):
        mapped(np.ones((8, 3)), y, position)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"metric": "crossnobis"}, "metric must be one of"),
        ({"comparison": "tau-a"}, "comparison must be one of"),
        ({"neighbourhood": "surface"}, "neighbourhood must be one of"),
        ({"radius": -1.0}, "radius must be at least 0"),
        ({"radius": 1.0, "neighbourhood": "correlation"}, "radius must be 0 for neighbourhoods by correlation"),
        ({"stride": 0}, "n_neighbours, stride and min_channels must be at least 1"),
        ({"n_permutations": -1}, "n_permutations must be at least 0"),
        ({"level": 1.0}, "level must be between 0 and 1"),
    ],
)
def test_config__raises_on_an_option_that_makes_no_sense(option, message, without_shape_checks):
    with pytest.raises(ConfigurationError, match=message):
        SearchlightConfig(**option)
