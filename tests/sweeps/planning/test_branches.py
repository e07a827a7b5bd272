"""Parents of branches are found by id or name, and what can't be branched from is refused in one line."""

import dataclasses
import json

import pytest

from eval.config import EvalConfig
from olmo_jax.cohort import Cohort, shape_of
from olmo_jax.config import ConfigError, to_config_dict
from olmo_jax.data.shards import TokenIndex
from olmo_jax.errors import UserError
from olmo_jax.storage.run_status import read_status
from olmo_jax.train import train_cohort, write_run_files
from sweeps.planning import branches, costs
from sweeps.planning.grid import cross, seeds
from sweeps.planning.plan import Plan, Sweep, as_json, configuration, resolve
from sweeps.running import stacks as running
from sweeps.running.parents import check_tokenizers, lacking
from sweeps.running.stacks import one_process_per_stack

TRUNK = {"name": "trunk", "checkpoint.at": (6,)}
BRANCH = {"name": "branch", "branch.parent": "trunk@6"}
BOTH = ("init_seed", "data_seed")


def planned(tiny, *grid, **changes):
    return resolve(Sweep(to_config_dict(dataclasses.replace(tiny, **changes)), list(grid)), lambda data: "print")


def by_name(plan):
    return {run.config.name: run for run in plan.runs}


def test_a_name_stands_for_the_run_with_the_seeds_of_the_branch(tiny):
    plan = planned(tiny, *seeds([BRANCH, TRUNK], 2, keys=BOTH))
    trunks = {run.config.init_seed: run for run in plan.runs if run.config.name == "trunk"}
    for run in plan.runs:
        if run.config.name == "branch":
            assert run.config.branch.parent == f"{trunks[run.config.init_seed].id}@6"
            assert run.config.branch.start_step == 6
    assert len({configuration(run.config) for run in plan.runs}) == 2  # seeds are replicates, of branches too
    assert len(plan.cohorts) == 2
    assert [stack.shape.start_step for stack in branches.in_order(plan.cohorts)] == [0, 6]


def test_an_id_means_that_run_and_gives_the_same_branch(tiny):
    trunk = by_name(planned(tiny, TRUNK))["trunk"]
    by_id = planned(tiny, TRUNK, BRANCH | {"branch.parent": f"{trunk.id}@6"})
    assert by_name(by_id)["branch"].id == by_name(planned(tiny, TRUNK, BRANCH))["branch"].id


def test_the_parent_its_step_and_its_average_are_part_of_the_identity(tiny):
    several = [
        BRANCH,
        BRANCH | {"branch.parent": "trunk@10"},
        BRANCH | {"branch.average_last": 2},
        BRANCH | {"branch.moments": False},
        BRANCH | {"branch.parent": "other@6"},
    ]
    plan = planned(tiny, TRUNK, TRUNK | {"name": "other", "optimizer.weight_decay": 0.5}, *several)
    assert len({run.id for run in plan.runs}) == 7
    assert len({configuration(run.config) for run in plan.runs}) == 7


def test_what_is_averaged_is_part_of_the_identity(tiny):
    def ids(**trunk):
        changes = {f"checkpoint.{key}": value for key, value in trunk.items()}
        shared = BRANCH | {"branch.parent": "trunk@10"} | changes
        mean, ema = ({"name": "mean", "branch.average_last": 2}, {"name": "ema", "branch.ema": True})
        plan = by_name(planned(tiny, TRUNK | changes, shared | mean, shared | ema))
        return plan["mean"].id, plan["ema"].id, plan["mean"].config.branch.averaged_steps

    first = ids(at=(6,), ema_decay=0.9)
    assert first[2] == (6, 10)
    assert ids(at=(8,), ema_decay=0.9)[0] != first[0]
    other = ids(at=(6,), ema_decay=0.5)
    assert other[1] != first[1] and other[0] == first[0]


def test_passes_over_the_text_are_counted_on_the_text_of_the_branch(tiny):
    onto = BRANCH | {"data.name": "other", "name": "onto"}
    plan = planned(tiny, TRUNK, BRANCH, onto)
    configs = {run.id: run.config for run in plan.runs}
    tokens = {run.config.name: branches.tokens_of_text(run.config, configs) for run in plan.runs}
    assert tokens == {"trunk": 12 * 64, "branch": 12 * 64, "onto": 6 * 64}


def test_branches_of_branches_and_other_batches_count_from_the_root(tiny):
    wide = BRANCH | {"data.batch_size": 8, "checkpoint.at": (4,)}  # its step 3 is the trunk's step 6
    leaf = {"name": "leaf", "branch.parent": "branch@4", "data.batch_size": 2, "tokens": 20 * 64}
    plan = by_name(planned(tiny, leaf, wide, TRUNK))
    assert plan["branch"].config.branch.start_step == 3
    assert plan["leaf"].config.branch.start_step == 16
    assert plan["leaf"].config.total_steps == 40


def test_the_plan_draws_the_tree_and_counts_only_the_steps_of_each_run(tiny):
    plan = planned(tiny, TRUNK, BRANCH, BRANCH | {"name": "mean", "tokens": 6 * 64, "branch.average_last": 2})
    lines = costs.lines(plan, {}, 1e9, "as stated")
    tree = lines[lines.index("branches, with steps counted from the root:") + 1 :][:3]
    assert [line.split("-")[0].strip() for line in tree] == ["trunk", "├─ branch", "└─ mean"]
    assert tree[1].endswith("from step 6 to 12") and tree[2].endswith("to 6, from the mean of 2 checkpoints")
    assert any("3 runs in 2 cohort(s)" in line and f"{(12 + 6) * 64:,} tokens" in line for line in lines)
    assert branches.tree(planned(tiny, TRUNK).runs) == []


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([TRUNK, BRANCH | {"branch.parent": "trnk@6"}], ["grid point 1", "no run 'trnk'", "did you mean 'trunk'"]),
        ([TRUNK, BRANCH | {"branch.parent": "trunk"}], ["config.train.branch.parent = 'trunk'", "needs RUN@STEP"]),
        ([TRUNK, BRANCH | {"branch.parent": "trunk@7"}], ["no checkpoint at step 7, but at 5, 6, 10, 12", "add 7"]),
        ([TRUNK, BRANCH | {"branch.parent": "trunk@0"}], ["no checkpoint at step 0", "choose one of these"]),
        ([TRUNK, BRANCH | {"tokens": 6 * 64}], ["config.train.tokens = 384", "starts after step 6", "at least 448"]),
        ([TRUNK, BRANCH | {"model.d_ff": 64}], ["config.train.model.d_ff = 64", "has 32", "set it to that"]),
        ([TRUNK, BRANCH | {"model.vocab_size": 400}], ["config.train.model.vocab_size = 400", "has 300"]),
        ([TRUNK, BRANCH | {"init_seed": 1}], ["config.train.init_seed = 1", "has 0", "set it to that"]),
        ([TRUNK, BRANCH | {"optimizer.name": "muon"}], ["branch.moments", "was trained by adamw", "False"]),
        ([TRUNK, BRANCH | {"data.batch_size": 5}], ["384 tokens at step 6 aren't a whole number of steps of 80"]),
        ([TRUNK, BRANCH | {"branch.average_last": 3}], ["average_last = 3", "2 checkpoints up to step 6"]),
        ([TRUNK, {"branch.average_last": 3}], ["branch.average_last = 3", "no effect without", "branch.parent"]),
        (
            [{"name": "a", "branch.parent": "b@5"}, {"name": "b", "branch.parent": "a@5"}],
            ["circle", "'a' (grid point 0)", "'b' (grid point 1)"],
        ),
        ([{"name": "a", "branch.parent": "a@5"}], ["no run 'a'"]),
        (
            [*cross([TRUNK], [{"optimizer.weight_decay": d} for d in (0.1, 0.5)]), BRANCH],
            ["2 runs have this name", "names of their own"],
        ),
        (
            [TRUNK, BRANCH | {"tokens": 6 * 64, "branch.average_last": 2}, {"branch.parent": "branch@6"}],
            ["takes no step of its own", "average in the same way"],
        ),
    ],
)
def test_what_cannot_be_branched_from_is_refused(tiny, grid, words):
    with pytest.raises(ConfigError) as refused:
        planned(tiny, *grid)
    for word in words:
        assert word in str(refused.value)


def test_a_parent_in_another_working_directory(tiny, index, tmp_path, vary):
    trunk, wild = planned(
        tiny, TRUNK, TRUNK | {"name": "wild", "optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    ).runs
    cohort = Cohort(shape_of(tiny, index.fingerprint), (trunk, wild))
    write_run_files(tmp_path, cohort)
    place = {"branch.workdir": str(tmp_path)}
    untrained = planned(tiny, BRANCH | place | {"branch.parent": f"{trunk.id}@10"})
    assert f"it starts from {trunk.id}@10, a checkpoint that isn't there" in lacking(tmp_path, untrained.cohorts[0])
    assert train_cohort(tmp_path, cohort, index, lambda: False)
    assert read_status(tmp_path, wild.id)["diverged_at"] <= 5
    (run,) = planned(tiny, BRANCH | place | {"branch.parent": f"{trunk.id}@10"}).runs
    assert run.config.branch.start_step == 10
    assert (
        lacking(tmp_path / "elsewhere", planned(tiny, BRANCH | place | {"branch.parent": f"{trunk.id}@10"}).cohorts[0])
        == ""
    )
    # Where the parent lies isn't part of what the branch is.
    assert run.id == by_name(planned(tiny, TRUNK, BRANCH | {"branch.parent": "trunk@10"}))["branch"].id
    with pytest.raises(ConfigError, match="wild-.* diverged at step .*; choose an earlier step"):
        planned(tiny, BRANCH | place | {"branch.parent": f"{wild.id}@10"})
    with pytest.raises(ConfigError, match="no run 'nobody'.*its runs: trunk-"):
        planned(tiny, BRANCH | place | {"branch.parent": "nobody@10"})
    json.dumps(as_json(planned(tiny, BRANCH | place | {"branch.parent": f"{trunk.id}@10"})))


def test_text_of_another_tokenizer_is_refused(tiny, index, tmp_path):
    data = dataclasses.replace(tiny.data, name="other")
    plan = planned(tiny, TRUNK, BRANCH | {"data.name": "other"})
    same = {tiny.data.name: index, data.name: index}
    check_tokenizers(tmp_path, plan, same)
    other: TokenIndex = dataclasses.replace(index, tokenizer_sha256="0" * 64)
    with pytest.raises(ConfigError, match="branch-.* reads tokens of another tokenizer than its parent, trunk-"):
        check_tokenizers(tmp_path, plan, same | {data.name: other})


def test_a_stack_waits_for_its_parents_and_fails_without_them(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_POLL_SECONDS", 0.01)
    plan = planned(tiny, BRANCH, TRUNK)
    done = []

    def needed(stack):
        return "" if stack.shape.start_step == 0 or done else "it starts from trunk@6"

    def work(stack, stop):
        done.append(stack.shape.start_step)
        return True

    # Whatever the order, parents first.
    assert one_process_per_stack(tmp_path, plan.cohorts, lambda: False, work, needed)
    assert done == [0, 6]
    done.clear()
    orphan = [stack for stack in plan.cohorts if stack.shape.start_step]
    with pytest.raises(UserError, match="it starts from trunk@6; train that first"):
        one_process_per_stack(tmp_path, orphan, lambda: False, work, needed)


def test_plans_without_branches_stay_as_they_were(tiny):
    plan = planned(tiny, {})
    assert isinstance(plan, Plan) and plan.evaluation == EvalConfig()
    assert plan.runs[0].config.branch == tiny.branch


def test_a_cohort_waits_for_those_of_its_parents(tiny):
    leaf = {"name": "leaf", "branch.parent": "branch@10"}
    plan = planned(tiny, leaf, TRUNK, {"name": "other", "model.n_layers": 2}, BRANCH)
    names = [cohort.runs[0].config.name for cohort in plan.cohorts]
    assert dict(zip(names, branches.depths(plan.cohorts), strict=True)) == {
        "trunk": 0,
        "other": 0,
        "branch": 1,
        "leaf": 2,
    }
