"""The roofline of a step: its FLOPs match flops.py, its bytes those of the compiled update."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import roofline
from benchmarks.roofline import SHAPES, Shape
from olmo_jax import optimizer
from olmo_jax.config import OptimizerConfig
from olmo_jax.execution import flops
from olmo_jax.optimizer import Hyper


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_flops_of_the_parts_sum_to_those_of_a_step(shape):
    parts = roofline.work(shape).values()
    assert sum(part.flops for part in parts) == shape.members * flops.train_step(shape.model, shape.batch, shape.length)


def test_flops_and_bytes_are_proportional_to_the_number_of_members():
    one_member = Shape(roofline.model_of(4096, 64, 4, 2), 8, 256)
    of_one, of_all = roofline.work(one_member), roofline.work(one_member._replace(members=32))
    for name, part in of_one.items():
        assert of_all[name] == pytest.approx((32 * part.flops, 32 * part.bytes))


def test_loss_chunks_follow_the_limit_on_held_logits():
    paper = Shape(roofline.model_of(50280, 768, 8, 12), 32, 1024)
    held_logits = 4096 * 50304  # of 128 positions of 32 sequences
    assert held_logits <= 2**28 < 2 * held_logits
    assert paper.chunks == 8
    assert roofline.matmul_kernels(paper) == 21 * 8 + 3 * 8


def test_optimiser_bytes_match_its_compiled_update():
    """One matrix of two members, updated and kept only if the new one is finite, as in cohort.member_step."""

    def update(params, moments, gradients, h):
        rule = optimizer.update_rule(h, optimizer.learning_rate(h, 3), OptimizerConfig())
        updates, new_moments = rule.update(gradients, moments, params)
        new = optax.apply_updates(params, updates)
        finite = jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(optax.tree.norm(new))
        keep = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
        return keep(new, params), keep(new_moments, moments)

    params = {"w": jax.ShapeDtypeStruct((2, 256, 256), jnp.float32)}
    moments = jax.eval_shape(jax.vmap(lambda p: optimizer.init(p, OptimizerConfig())), params)
    hyper = Hyper(*(jax.ShapeDtypeStruct((2,), jnp.float32) for _ in Hyper._fields))
    compiled = jax.jit(jax.vmap(update), donate_argnums=(0, 1)).lower(params, moments, params, hyper).compile()
    moved = compiled.cost_analysis()["bytes accessed"] / (2 * 256 * 256)
    assert moved == pytest.approx(84, rel=0.1)


def test_the_documented_table_matches_the_computed_shapes():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "speed.md").read_text()
    table = page[page.index("### Four steps") : page.index("### What vmap does")]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    numbers = {cells[0]: [cell.split(" ")[0] for cell in cells[1:]] for cells in rows}
    names = {
        "projections of the blocks": "projections",
        "attention": "attention",
        "element-wise within blocks": "element-wise",
        "matmuls of the vocabulary": "logits",
        "passes over the logits": "loss",
        "optimiser": "optimiser",
    }
    times_by_part = [
        {name: max(part.seconds(700e12, 3.35e12)) for name, part in roofline.work(s).items()} for s in SHAPES.values()
    ]
    for row, name in names.items():
        assert numbers[row] == [f"{1e3 * of[name]:.2f}".removeprefix("0") for of in times_by_part]
    assert numbers["sum"] == [f"{1e3 * sum(of.values()):.2f}".removeprefix("0") for of in times_by_part]
