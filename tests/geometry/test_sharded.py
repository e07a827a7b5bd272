"""Rows over `data`, members over `member`: results match one device, and no matrix is gathered."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from geometry import probe, similarity
from geometry.gauge import centred, gauge_fix
from geometry.isotropy import partition_isotropy
from geometry.svd import singular_values

# Everything but intrinsic dimension, for which each point is compared with every other.
METRICS = tuple(n for n in probe.METRICS if not re.match(r"(local_)?two_nn|levina_bickel|duplicates", n))
ROWS, WIDTH = 1000, 24  # 1,000 rows in blocks of partition isotropy that 4 devices share


@pytest.fixture(scope="module")
def mesh():
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    return Mesh(devices, ("member", "data"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def stack():
    """Two members: a well-conditioned one, and one that needs the refined method."""
    rng = np.random.default_rng(0)
    easy = 0.3 * rng.standard_normal((ROWS, WIDTH)) + 0.1
    u, _ = np.linalg.qr(rng.standard_normal((ROWS, WIDTH)))
    v, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    return np.stack([easy, (u * np.geomspace(20, 2e-3, WIDTH)) @ v.T]).astype(np.float32)


def gathered(compiled):
    """Return the element counts of the arrays that collectives send to a device; reductions of D x D are expected."""
    sizes = []
    for line in compiled.as_text().splitlines():
        if re.search(r"= .*\b(all-gather|all-to-all|collective-permute|all-reduce)(-start)?\(", line):
            shapes = re.findall(r"[a-z0-9]+\[([\d,]*)\]", line.split("=", 1)[1].split("(", 1)[0] + line)
            sizes.append(max(math.prod(map(int, s.split(","))) if s else 1 for s in shapes))
    return sizes


def small(size):
    return size <= 2 * WIDTH * WIDTH


def assert_close(name, value, other):
    # At this width alpha_req is the slope through eigenvalues 11 and 12, whose logarithms are right to some 1e-6 each.
    atol = 4 * 2e-6 / math.log(12 / 11) if name == "alpha_req" else 1e-6
    np.testing.assert_allclose(value, other, rtol=2e-3 if name == "condition_number" else 1e-4, atol=atol)


@pytest.mark.parametrize("variant", ["raw", "centred", "gauge-fixed"])
def test_summary_of_sharded_rows_matches_one_device(mesh, stack, variant):
    fix = {"raw": lambda w: w, "centred": centred, "gauge-fixed": functools.partial(gauge_fix, norm="layer_norm")}
    metrics = tuple(m for m in METRICS if variant != "gauge-fixed" or m != "condition_number")

    def measure(w_VD):
        return probe.summarize(fix[variant](w_VD), metrics)

    for member in stack:
        w_VD = jax.device_put(member, NamedSharding(mesh, PartitionSpec("data", None)))
        compiled = jax.jit(measure).lower(w_VD).compile()
        assert all(map(small, gathered(compiled))), gathered(compiled)
        on_one_device = measure(member)
        for name, value in compiled(w_VD).items():
            assert_close(name, value, on_one_device[name])


def test_summary_of_a_stack_sharded_over_members_and_rows_matches_one_device(mesh, stack):
    measure = jax.vmap(functools.partial(probe.summarize, metrics=METRICS), spmd_axis_name="member")
    w_MVD = jax.device_put(stack, NamedSharding(mesh, PartitionSpec("member", "data", None)))
    compiled = jax.jit(measure).lower(w_MVD).compile()
    assert all(map(small, gathered(compiled))), gathered(compiled)
    together = compiled(w_MVD)
    for m, member in enumerate(stack):
        for name, value in probe.summarize(member, METRICS).items():
            assert_close(name, together[name][m], value)


@pytest.mark.parametrize("rows", [ROWS, ROWS - 8])
def test_blocked_partition_isotropy_of_sharded_rows_matches_one_device(mesh, stack, rows):
    """Slicing off padding rows moves a few rows between devices, not the matrix."""

    def measure(w_VD):
        return partition_isotropy(w_VD[:rows], max_elements=3000)

    w_VD = jax.device_put(stack[0], NamedSharding(mesh, PartitionSpec("data", None)))
    compiled = jax.jit(measure).lower(w_VD).compile()
    assert all(size < ROWS * WIDTH / 8 for size in gathered(compiled)), gathered(compiled)
    np.testing.assert_allclose(compiled(w_VD), measure(stack[0]), rtol=1e-4)


def test_similarity_of_sharded_rows_matches_one_device(mesh, stack):
    def measure(w_VD, z_VD):
        return similarity.linear_cka(w_VD, z_VD), similarity.mean_squared_angle(w_VD, z_VD)

    sharded = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", None))) for x in stack]
    compiled = jax.jit(measure).lower(*sharded).compile()
    assert all(map(small, gathered(compiled))), gathered(compiled)
    np.testing.assert_allclose(compiled(*sharded), measure(*stack), rtol=1e-3)


def test_the_gather_check_detects_a_gather(mesh, stack):
    """QR gathers the matrix on one device, so the check used above must report it."""
    w_VD = jax.device_put(stack[0], NamedSharding(mesh, PartitionSpec("data", None)))
    compiled = jax.jit(functools.partial(singular_values, method="qr")).lower(w_VD).compile()
    assert not all(map(small, gathered(compiled)))
