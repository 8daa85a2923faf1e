import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize_scalar
from scipy.spatial import cKDTree

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import IntrinsicDimensionConfig, intrinsic_dimension, intrinsic_dimension_many
from mechint_core.geometry._dimension_calibration import calibrate
from mechint_core.geometry._local_spectrum import gap_dimension
from mechint_core.geometry._neighbour_ratios import gride
from mechint_core.kernels.neighbour_graph import neighbour_graph
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def estimates_only(**options):
    """A config that draws nothing."""
    return IntrinsicDimensionConfig(n_surrogates=0, n_calibrations=0, n_bootstrap=0, **options)


def flat_torus(n, d, seed=0):
    """A product of circles: no border, and uniform."""
    angle = generator(seed, "flat").uniform(0, 2 * np.pi, (n, d))
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


# Known answer
@pytest.mark.parametrize(
    ("cloud", "d"),
    [
        (manifolds.circle(1000), 1),
        (manifolds.swiss_roll(1500), 2),
        (manifolds.sphere(1500, ambient=20), 2),
        (manifolds.torus(1500), 2),
        (manifolds.hypersphere(1500, dimension=3), 3),
        (manifolds.hypersphere(1500, dimension=5, ambient=30), 5),
    ],
    ids=["circle", "swiss roll", "sphere", "torus", "S3", "S5"],
)
def test_intrinsic_dimension__manifolds_have_their_dimension(cloud, d):
    """Tolerance 8 %: two standard errors at n = 1500 are 5 %, and the curvature of S5 adds 3 %."""
    result = intrinsic_dimension(cloud.points, config=estimates_only())

    assert cloud.dimension == d
    assert result.two_nn.value == pytest.approx(d, rel=0.08)
    assert result.mle.value == pytest.approx(d, rel=0.08)
    assert result.local_pca.value == d
    assert result.dimension_by_scale[0] == result.two_nn.value
    assert result.neighbour.tolist() == [2, 4, 8, 16, 32, 64]


def test_intrinsic_dimension__noise_shows_below_its_scale_and_is_measured():
    """20 dimensions of noise, 0.3 each, around a roll. The floor holds some curvature too: 25 %."""
    result = intrinsic_dimension(manifolds.swiss_roll(1500, noise=0.3, ambient=20).points, config=estimates_only())

    assert result.two_nn.value > 6
    assert result.dimension_by_scale[-1] == pytest.approx(2, abs=0.5)
    assert np.all(np.diff(result.dimension_by_scale) < 0)
    assert result.local_pca.value == 2
    assert result.noise_floor == pytest.approx(0.3, rel=0.25)


def test_intrinsic_dimension__copies_are_left_out_and_counted():
    """With copies of distance 1e-7 other programs report 0.06 and say nothing."""
    once = manifolds.swiss_roll(600).points
    jitter = 1e-7 * generator(0, "jitter").standard_normal(once.shape)
    plain = intrinsic_dimension(once, config=estimates_only())
    result = intrinsic_dimension(np.concatenate([once, once + jitter, once[:50]]), config=estimates_only())

    assert (result.n_points, result.n_duplicates, result.n_near_duplicates) == (600, 50, 600)
    assert result.two_nn.value == pytest.approx(plain.two_nn.value, rel=1e-5)
    np.testing.assert_allclose(result.local_dimension[:600], plain.local_dimension, rtol=1e-4)
    np.testing.assert_array_equal(result.local_dimension[600:1200], result.local_dimension[:600])
    assert "650 copies of other samples were left out" in result.reading()


def test_intrinsic_dimension__parts_of_different_dimension_have_local_ones():
    line = np.outer(np.linspace(0, 50, 500), np.eye(6)[0]) + 100
    block = manifolds.uniform_cube(500, dimension=5, ambient=6).points
    local = intrinsic_dimension(np.concatenate([line, block]), config=estimates_only()).local_dimension

    assert np.median(local[:500]) == pytest.approx(1, abs=0.2)
    assert np.median(local[500:]) == pytest.approx(4.7, abs=0.6)


def test_intrinsic_dimension__groups_of_samples_are_no_dimension():
    """Every sample beside a near copy: the ratio of its two distances says how near, and nothing else."""
    once = manifolds.swiss_roll(600).points
    near = once + 1e-2 * generator(0, "jitter").standard_normal(once.shape)
    result = intrinsic_dimension(np.concatenate([once, near]), config=estimates_only())

    assert result.two_nn.high < 1
    assert result.dimension_by_scale[-1] == pytest.approx(2, abs=0.3)
    assert "tight groups" in result.reading()


def test_intrinsic_dimension__null_tells_a_curved_manifold_from_a_gaussian_cloud():
    config = IntrinsicDimensionConfig(n_surrogates=39, n_calibrations=0)
    curved = intrinsic_dimension(manifolds.hypersphere(500, dimension=2, ambient=10).points, config=config)
    gaussian = intrinsic_dimension(generator(3, "gauss").standard_normal((500, 6)) * np.arange(1, 7), config=config)

    assert curved.two_nn.p_value == pytest.approx(1 / 40)
    assert curved.two_nn.null == pytest.approx(3, abs=0.2)
    assert "fewer than a Gaussian cloud" in curved.reading()
    assert gaussian.two_nn.p_value > 0.05
    assert "no fewer than" in gaussian.reading()


@pytest.mark.parametrize(
    ("cloud", "d"),
    [
        (manifolds.hypersphere(600, dimension=12).points, 12),
        (manifolds.uniform_cube(600, dimension=16).points, 16),
        (generator(0, "gauss").standard_normal((600, 20)), 20),
    ],
    ids=["sphere", "cube", "gaussian"],
)
def test_intrinsic_dimension__corrected_interval_holds_the_dimension_of_solids(cloud, d):
    result = intrinsic_dimension(cloud, config=IntrinsicDimensionConfig(n_surrogates=0))

    assert result.corrected.low <= d <= result.corrected.high
    assert result.corrected.low <= result.corrected.value <= result.corrected.high
    assert (result.two_nn.high < d) == (d > 12)


def test_calibrate__finds_the_dimension_that_shows_as_what_it_shows():
    """A cloud of 12 dimensions, drawn by other seeds, is corrected to 12: within 5 %, the error of its estimates."""
    raw = np.mean(
        [
            gride(neighbour_graph(generator(s, "draw").standard_normal((500, 12)), 2), 1, with_error=False).value
            for s in range(8)
        ]
    )
    options = {"n_points": 500, "n_neighbours": 2, "n_draws": 4, "seed": 1}
    known = calibrate(lambda graph: gride(graph, 1, with_error=False).value, float(raw), **options)

    assert raw < 11.5
    assert known.corrected(float(raw), "gaussian") == pytest.approx(12, rel=0.05)
    assert known.corrected(float(raw), "cube") > 12


def test_intrinsic_dimension__participation_ratio_of_known_spectra():
    """Two equal axes give 2; one that dwarfs the rest gives 1; fewer samples than units are bounded by them."""
    rng = generator(0, "spectrum")
    two = intrinsic_dimension(rng.standard_normal((4000, 4)) * [1, 1, 1e-3, 1e-3], config=estimates_only())
    wide = intrinsic_dimension(rng.standard_normal((60, 300)), config=estimates_only())

    assert two.participation_ratio.value == pytest.approx(2, rel=0.01)
    assert two.participation_ratio.low < 2.01
    assert two.participation_ratio.null == pytest.approx(4, rel=0.01)
    assert wide.participation_ratio.value == pytest.approx(wide.participation_ratio.null, rel=0.05)
    assert wide.participation_ratio.value < 59


@pytest.mark.parametrize(
    ("spectrum", "n_units", "d"),
    [
        ([0.5, 0.48, 0.01, 0.01], 4, 2),
        ([0.4, 0.35, 0.25], 3, 3),
        ([0.4, 0.35, 0.25], 9, np.nan),
        ([0.5, 0.3, 0.2, 0.15, 0.1], 50, np.nan),
        ([0.6, 0.4, 1e-3, 1e-6], 9, 2),
    ],
)
def test_gap_dimension__is_where_the_largest_gap_is(spectrum, n_units, d):
    np.testing.assert_equal(gap_dimension(np.array(spectrum), n_units), d)


def test_intrinsic_dimension__grid_has_no_ratios():
    grid = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), axis=-1).reshape(-1, 3)
    result = intrinsic_dimension(np.concatenate([grid, grid + 100]), config=estimates_only())

    assert np.isnan(result.two_nn.value)
    assert "equally far" in result.reading()


@pytest.mark.slow
@pytest.mark.parametrize(("d", "n"), [(1, 500), (2, 1000), (3, 1000)])
def test_intrinsic_dimension__intervals_cover(d, n):
    """Where there is neither border nor curvature to speak of: 95 % of 150 in at least 88 % (99.9 % of such tests)."""
    covered = np.zeros(2)
    for seed in range(150):
        graph = neighbour_graph(flat_torus(n, d, seed), 8)
        for place, k in enumerate((1, 4)):
            found = gride(graph, k)
            covered[place] += found.low <= d * (1.03 if d == 3 else 1) <= found.high

    assert np.all(covered / 150 >= 0.88)


@pytest.mark.slow
def test_intrinsic_dimension__false_positives_are_at_their_nominal_rate():
    """The rotation test is exact under any Gaussian: 200 draws at 5 % stay below 8.6 % in 99 % of cases."""
    config, rejected = IntrinsicDimensionConfig(n_surrogates=19, n_calibrations=0, n_bootstrap=0, n_anchors=2), 0
    for seed in range(200):
        cloud = generator(seed, "gaussian").standard_normal((120, 10)) * np.exp(-np.arange(10) / 3)
        rejected += intrinsic_dimension(cloud, config=config).two_nn.p_value <= 0.05

    assert rejected / 200 <= 0.086


# Calibration
@pytest.mark.calibration
@pytest.mark.parametrize(
    ("draw", "d"),
    [
        (lambda seed: ball(300, 3, seed), 3),
        (lambda seed: ball(300, 8, seed), 8),
        (lambda seed: generator(seed, "gauss").standard_normal((300, 15)), 15),
        (lambda seed: manifolds.uniform_cube(300, dimension=5, seed=seed).points, 5),
        (lambda seed: manifolds.swiss_roll(500, seed=seed).points, 2),
    ],
    ids=["ball 3", "ball 8", "gaussian 15", "cube 5", "swiss roll"],
)
def test_intrinsic_dimension__corrected_interval_covers(draw, d):
    """Of 100 intervals at least 87 cover, in 99.9 % of cases."""
    config = {"n_surrogates": 0, "n_calibrations": 1, "n_bootstrap": 0, "n_anchors": 2, "max_neighbours": 8}
    found = [
        intrinsic_dimension(draw(seed), config=IntrinsicDimensionConfig(seed=seed, **config)).corrected
        for seed in range(100)
    ]

    assert sum(each.low <= d <= each.high for each in found) >= 87


@pytest.mark.calibration
@pytest.mark.parametrize(("n", "spectrum"), [(60, np.exp(-np.arange(10) / 3)), (200, np.ones(50)), (50, np.ones(100))])
def test_intrinsic_dimension__interval_covers_the_participation_ratio_that_so_many_samples_show(n, spectrum):
    """1 / (1 / PR + 1 / (n - 1)), not PR itself: of 200 intervals at least 179, in 99.9 % of cases."""
    truth = 1 / (np.sum(spectrum**2) / np.sum(spectrum) ** 2 + 1 / (n - 1))
    found = [
        intrinsic_dimension(
            generator(seed, "spectrum").standard_normal((n, len(spectrum))) * np.sqrt(spectrum),
            config=estimates_only(n_anchors=2, n_neighbours=4, max_neighbours=4, seed=seed),
        ).participation_ratio
        for seed in range(200)
    ]

    assert sum(each.low <= truth <= each.high for each in found) >= 179


def ball(n, d, seed):
    rng = generator(seed, "ball")
    direction = rng.standard_normal((n, d))
    return direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(size=(n, 1)) ** (1 / d)


# Oracle
@pytest.mark.parametrize("k", [1, 2, 8])
def test_gride__maximises_the_printed_likelihood(k):
    """Equation 5 of the paper, maximised without derivatives; neighbours from a k-d tree."""
    cloud = flat_torus(400, 2)
    distance = cKDTree(cloud).query(cloud, 2 * k + 1)[0]
    mu = distance[:, 2 * k] / distance[:, k]

    def minus_log_likelihood(d):
        return -np.sum(np.log(d) + (k - 1) * np.log(mu**d - 1) - ((2 * k - 1) * d + 1) * np.log(mu))

    best = minimize_scalar(minus_log_likelihood, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-10})
    assert gride(neighbour_graph(cloud, 2 * k), k).value == pytest.approx(best.x, rel=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "cloud",
    [
        manifolds.swiss_roll(1000).points,
        manifolds.hypersphere(1000, dimension=10).points,
        generator(0, "gauss").standard_normal((1000, 20)),
    ],
    ids=["swiss roll", "sphere", "gaussian"],
)
def test_intrinsic_dimension__agrees_with_scikit_dimension(cloud):
    """MLE: the same formula, to rounding. TwoNN: they fit a line to 90 % of the distribution: within 6 %."""
    skdim = pytest.importorskip("skdim")
    ours = intrinsic_dimension(cloud, config=estimates_only())
    distance = cKDTree(cloud).query(cloud, 21)[0][:, 1:]
    mle = skdim.id.MLE(neighborhood_based=True).fit(cloud, n_neighbors=20).dimension_pw_

    assert ours.mle.value == pytest.approx(1 / np.mean(1 / mle), rel=1e-9)
    assert ours.two_nn.value == pytest.approx(skdim.id.TwoNN().fit(cloud).dimension_, rel=0.06)
    np.testing.assert_allclose(ours.local_dimension, 18 / np.log(distance[:, -1:] / distance[:, :-1]).sum(axis=1))


# Law
CHEAP = IntrinsicDimensionConfig(n_surrogates=19, n_calibrations=1, n_bootstrap=10, max_neighbours=8, n_neighbours=6)


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.floats(1e-8, 1e8))
def test_intrinsic_dimension__ignores_scale_rotation_shift_and_order(seed, scale):
    rng = generator(seed, "cloud")
    cloud = rng.standard_normal((80, 3)) * [1, 1, 0.1]
    order = rng.permutation(80)
    turned = scale * (cloud @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.standard_normal(3))
    options = estimates_only(n_anchors=80)
    here, there = intrinsic_dimension(cloud, config=options), intrinsic_dimension(turned[order], config=options)

    for name in ("two_nn", "mle", "local_pca", "participation_ratio"):
        np.testing.assert_allclose(getattr(there, name).value, getattr(here, name).value, rtol=1e-6)
    np.testing.assert_allclose(there.local_dimension, here.local_dimension[order], rtol=1e-6)
    np.testing.assert_allclose(there.radius, scale * here.radius, rtol=1e-9)


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_intrinsic_dimension__estimates_lie_within_their_intervals(seed):
    result = intrinsic_dimension(generator(seed, "cloud").standard_normal((80, 4)), config=CHEAP)

    for name in ("two_nn", "mle", "participation_ratio", "corrected"):
        each = getattr(result, name)
        assert 0 < each.low <= each.value <= each.high
    assert 1 / 20 <= result.two_nn.p_value <= 1
    assert np.all(result.low_by_scale <= result.dimension_by_scale)
    assert np.all(result.dimension_by_scale <= result.high_by_scale)


def test_intrinsic_dimension__same_seed_gives_the_same_numbers_on_any_backend():
    many = [manifolds.sphere(60, seed=seed, noise=0.1).points for seed in range(3)]
    one_by_one = [intrinsic_dimension(each, config=CHEAP).scalars() for each in many]
    with compute(Backend(threads=2)):
        assert [each.scalars() for each in intrinsic_dimension_many(many, config=CHEAP)] == one_by_one


def test_intrinsic_dimension__draws_fewer_surrogates_and_solids_for_more_points():
    config = IntrinsicDimensionConfig()

    assert [config.surrogates_for(n) for n in (100, 500, 1000, 10000)] == [99, 99, 49, 19]
    assert [config.calibrations_for(n) for n in (100, 1000, 2000, 10000)] == [4, 4, 2, 1]


# Bad input
@pytest.fixture
def unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3), (3, 0)])
def test_intrinsic_dimension__raises_on_anything_but_a_matrix(shape):
    with pytest.raises(ShapeError, match=r"points must be \(sample, unit\)"):
        intrinsic_dimension(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_intrinsic_dimension__raises_on_points_that_are_not_finite(bad):
    points = manifolds.circle(30).points
    points[3, 0] = bad
    with pytest.raises(DegenerateInputError, match="Got 1 samples with NaN or infinity"):
        intrinsic_dimension(points)


@pytest.mark.parametrize("points", [np.ones((100, 3)), np.tile(np.eye(19), (3, 1)), np.eye(19)])
def test_intrinsic_dimension__raises_where_too_few_samples_are_distinct(points):
    with pytest.raises(DegenerateInputError, match=r"at least 20 distinct samples.*Got (1|19)\."):
        intrinsic_dimension(points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbours": 2}, "n_neighbours must be at least 3"),
        ({"max_neighbours": 1}, "max_neighbours and n_anchors must be at least 2"),
        ({"n_anchors": 1}, "max_neighbours and n_anchors must be at least 2"),
        ({"n_surrogates": 5}, "n_surrogates must be 0 or at least 19"),
        ({"n_bootstrap": -1}, "must not be negative"),
        ({"n_calibrations": -1}, "must not be negative"),
    ],
)
def test_intrinsic_dimension__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        IntrinsicDimensionConfig(**options)
