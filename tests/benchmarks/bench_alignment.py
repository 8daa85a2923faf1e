"""CKA and RSA against the arithmetic floor and rsatoolbox, and the memory of one comparison from the store."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from mechint_core.alignment import PermutationTestConfig, RDMConfig, cka, permutation_test, rdm
from mechint_core.alignment._comparisons import compare
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._subjects import SubjectAgreement
from mechint_core.kernels.moments import pairwise_linear_cka
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.store import ActivationStore

REPEATS = 7
COMPARE = """
import sys, time
from pathlib import Path
from mechint_core.alignment import RSA
from mechint_core.random import generator
from mechint_core.store import ActivationStore

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

store = ActivationStore(sys.argv[1])
x, y = (store.activations("run", 0, site) for site in ("x", "y"))
warm = generator(0, "warm").normal(size=(500, 100)).astype("float32")
RSA(metric="correlation").compare(warm, warm + x[:500][:, :100])
before, started = peak(), time.process_time()
RSA(metric="correlation").compare(x, y)
risen, ours = peak() - before, time.process_time() - started
a, b = (site[:2000].astype("float64") for site in (x, y))
started = time.process_time()
for _ in range(10):
    a.T @ a, a.T @ b, b.T @ b
print(risen, ours, time.process_time() - started)
"""


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = generator(0, "bench", "alignment")
    x = rng.standard_normal((5000, 1000), dtype=np.float32)
    return x, x[:, ::-1] + rng.standard_normal((5000, 1000), dtype=np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two systems of 20,000 conditions and 1000 units, 80 MB each."""
    folder = tmp_path_factory.mktemp("alignment")
    rng = generator(0, "bench", "store")
    made = ActivationStore(folder)
    for site in ("x", "y"):
        with made.write_activations("run", 0, site, n_samples=20_000, source={}) as writer:
            for _ in range(20):
                writer.append(rng.standard_normal((1000, 1000), dtype=np.float32))
    yield folder
    shutil.rmtree(folder)


def cpu_ratio(ours: Callable[[], object], floor: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the ratio of the best CPU times of two calls, taken in turn, on one worker thread."""
    times: list[list[float]] = [[], []]
    with compute(Backend(threads=1)):
        for _ in range(repeats):
            for call, taken in zip((ours, floor), times, strict=True):
                started = process_time()
                call()
                taken.append(process_time() - started)
    return min(times[0]) / min(times[1])


@pytest.mark.benchmark
def test_cka__against_one_float64_product(record, pair):
    x, y = pair
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)

    ratio = cpu_ratio(lambda: cka(x, y), lambda: wide_x.T @ wide_y)

    note = "with interval and null; float32 data"
    record("CKA, 5000 samples x 1000 units", ratio, 1.5, unit="x CPU time of one float64 XᵀY", note=note)


@pytest.mark.benchmark
def test_pairwise_linear_cka__against_its_products(record):
    """The floor is the arithmetic of the cheaper form: a float64 XᵀY per pair of systems."""
    rng = generator(0, "bench", "pairwise")
    systems = [rng.standard_normal((3481, 128), dtype=np.float32) for _ in range(33)]
    wide = [system.astype(np.float64) for system in systems]

    def every_product() -> None:
        for i, left in enumerate(wide):
            for right in wide[i:]:
                left.T @ right

    ratio = cpu_ratio(lambda: pairwise_linear_cka(systems), every_product, repeats=3)

    record("CKA matrix, 33 systems, 3481 x 128", ratio, 1.5, unit="x CPU time of 561 float64 XᵢᵀXⱼ")


@pytest.mark.benchmark
def test_rdm__against_one_float64_product(record, pair):
    x = pair[0][:2000].astype(np.float64)

    ratio = cpu_ratio(lambda: rdm(x, config=RDMConfig()), lambda: x @ x.T)

    note = "rsatoolbox 20; half a product, as X Xᵀ is symmetric"
    record("correlation RDM, 2000 x 1000", ratio, 2.5, unit="x CPU time of X Xᵀ", note=note)


@pytest.mark.benchmark
def test_rsa__from_the_store_in_one_pass(record, store):
    """In a process of its own, after one small comparison: what the peak of its memory rises by.

    VmHWM, because the peak that getrusage reports is inherited from the process that forked it.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of resident memory is read from /proc, which this system lacks")
    run = subprocess.run([sys.executable, "-c", COMPARE, str(store)], capture_output=True, text=True, check=True)
    kilobytes, seconds, floor = (float(each) for each in run.stdout.split())

    record(
        "RSA of 20,000 x 1000 from the store: memory",
        kilobytes / 1024,
        200,
        unit="MB above the imports",
        note="one pass; the two RDMs would take 3200 MB",
    )
    record(
        "RSA of 20,000 x 1000 from the store",
        seconds / floor,
        2.0,
        unit="x CPU time of float64 XᵀX, XᵀY and YᵀY",
        note=f"one pass, reading included; {seconds:.1f} CPU s",
    )


@pytest.mark.benchmark
@pytest.mark.oracle
@pytest.mark.parametrize(("comparison", "theirs"), [("pearson", "corr"), ("spearman", "spearman")])
def test_permutation_test__against_rsatoolbox(record, comparison, theirs):
    """10,000 relabellings of ours; 300 of theirs, times 10,000 / 300."""
    from rsatoolbox.rdm import RDMs, compare
    from rsatoolbox.rdm.rdms import permute_rdms

    rng = generator(0, "bench", "mantel")
    d, e = pdist(rng.normal(size=(200, 30))), pdist(rng.normal(size=(200, 30)))
    config = PermutationTestConfig(comparison=comparison, n_bootstrap=0)
    first, second = RDMs(d[None]), RDMs(e[None])
    permutation_test(d, e, config=PermutationTestConfig(n_permutations=10, n_bootstrap=0))  # compiled

    ratio = cpu_ratio(
        lambda: permutation_test(d, e, config=config),
        lambda: [compare(first, permute_rdms(second), method=theirs) for _ in range(300)],
        repeats=3,
    )

    note = "rsatoolbox: permute_rdms and compare, per relabelling"
    record(f"Mantel test, {comparison}, 200 conditions", ratio * 300 / 10_000, 0.1, note=note)


@pytest.mark.benchmark
@pytest.mark.oracle
@pytest.mark.parametrize(
    ("comparison", "theirs", "most"), [("pearson", "corr", 1.0), ("tau-a", "tau-a", 1.0), ("bures", "bures", 1.0)]
)
def test_compare__against_rsatoolbox(record, comparison, theirs, most):
    from rsatoolbox.rdm import RDMs, compare as compare_theirs

    rng = generator(0, "bench", "compare")
    d, e = (np.array([pdist(rng.normal(size=(200, 30))) for _ in range(8)]) for _ in "de")
    compare(d[:1, :6], e[:1, :6], comparison)  # compiled

    ratio = cpu_ratio(
        lambda: compare(d, e, comparison), lambda: compare_theirs(RDMs(d), RDMs(e), method=theirs), repeats=3
    )

    record(f"compare, {comparison}, 8 against 8 matrices of 200 conditions", ratio, most, note="rsatoolbox: compare")


@pytest.mark.benchmark
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
@pytest.mark.parametrize(
    ("comparison", "theirs", "bar"),
    [("pearson", "corr", 1 / 300), ("rho-a", "rho-a", 1 / 50)],
    ids=["pearson", "rho-a"],
)
def test_bootstrap__against_rsatoolbox(record, comparison, theirs, bar):
    """1000 draws of 100 conditions, 5 models and 10 subjects, with noise ceilings; theirs from 20 draws."""
    from rsatoolbox.inference import eval_bootstrap_pattern
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs

    rng = generator(0, "bench", "bootstrap")
    models, data = (np.array([pdist(rng.normal(size=(100, 30))) for _ in range(k)]) for k in (5, 10))
    counts = Draws(n_bootstrap=1000, n_permutations=0, level=0.95, seed=0).counts(100)
    once = np.ones((1000, 10))
    fixed = [ModelFixed(str(m), RDMs(each[None])) for m, each in enumerate(models)]

    def ours() -> None:
        drawn = SubjectAgreement.of(models, data, comparison, counts)
        drawn.mean(once), drawn.ceilings(once)

    ratio = cpu_ratio(
        ours, lambda: eval_bootstrap_pattern(fixed, RDMs(data), method=theirs, N=20, boot_noise_ceil=True), repeats=3
    )

    note = "rsatoolbox: eval_bootstrap_pattern with noise ceiling; 5 models, 10 subjects, per draw"
    record(f"condition bootstrap, 100 conditions, {comparison}", ratio / 50, bar, note=note)
