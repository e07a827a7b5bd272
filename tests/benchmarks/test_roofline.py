"""The floor of a step: its FLOPs are those of flops.py, its bytes those of the compiled step where they can be read."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import roofline
from benchmarks.roofline import SHAPES, Shape
from olmo_jax import optimizer
from olmo_jax.execution import flops
from olmo_jax.optimizer import Hyper


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_parts_have_the_flops_of_a_step(shape):
    parts = roofline.work(shape).values()
    assert sum(part.flops for part in parts) == shape.members * flops.train_step(shape.model, shape.batch, shape.length)


def test_members_do_and_move_what_each_does_alone():
    alone = Shape(roofline.model_of(4096, 64, 4, 2), 8, 256)
    of_one, of_all = roofline.work(alone), roofline.work(alone._replace(members=32))
    for name, part in of_one.items():
        assert of_all[name] == pytest.approx((32 * part.flops, 32 * part.bytes))


def test_the_loss_takes_as_many_chunks_as_logits_that_are_held_allow():
    paper = Shape(roofline.model_of(50280, 768, 8, 12), 32, 1024)
    held = 4096 * 50304  # of 128 positions of 32 sequences
    assert held <= 2**28 < 2 * held
    assert paper.chunks == 8
    assert roofline.matmul_kernels(paper) == 21 * 8 + 3 * 8


def test_the_optimisers_bytes_are_those_of_its_compiled_update():
    """One matrix of two members, updated and kept only if the new one is finite, as in cohort.member_step."""

    def update(params, moments, gradients, h):
        adamw = optimizer.adamw(h, optimizer.learning_rate(h, 3), True, True)
        updates, new_moments = adamw.update(gradients, moments, params)
        new = optax.apply_updates(params, updates)
        finite = jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(optax.tree.norm(new))
        keep = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
        return keep(new, params), keep(new_moments, moments)

    params = {"w": jax.ShapeDtypeStruct((2, 256, 256), jnp.float32)}
    moments = jax.eval_shape(jax.vmap(optimizer.init), params)
    hyper = Hyper(*(jax.ShapeDtypeStruct((2,), jnp.float32) for _ in Hyper._fields))
    compiled = jax.jit(jax.vmap(update), donate_argnums=(0, 1)).lower(params, moments, params, hyper).compile()
    moved = compiled.cost_analysis()["bytes accessed"] / (2 * 256 * 256)
    assert moved == pytest.approx(84, rel=0.1)


def test_the_table_of_the_page_is_that_of_the_shapes():
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
    made = [
        {name: max(part.seconds(700e12, 3.35e12)) for name, part in roofline.work(s).items()} for s in SHAPES.values()
    ]
    for row, name in names.items():
        assert numbers[row] == [f"{1e3 * of[name]:.2f}".removeprefix("0") for of in made]
    assert numbers["sum"] == [f"{1e3 * sum(of.values()):.2f}".removeprefix("0") for of in made]
