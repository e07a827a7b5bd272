import dataclasses
import json

import pytest
from etils import epath
from ml_collections import ConfigDict

from eval.config import EvalConfig
from olmo_jax.config import ConfigError, TrainConfig, to_config_dict
from sweeps.planning import costs
from sweeps.planning import plan as plans
from sweeps.planning import record as records
from sweeps.planning.grid import product, together
from sweeps.planning.stack_config import StackConfig
from sweeps.planning.stacks import most_members


@pytest.fixture
def sweep_of_grid(tiny):
    def make(grid, **more):
        return plans.read_sweep(ConfigDict({"train": to_config_dict(tiny), "grid": grid} | more))

    return make


def test_runs_that_share_shapes_share_a_cohort_and_members_keep_the_grids_order(sweep_of_grid):
    grid = product({"data.batch_size": [4, 8], "optimizer.weight_decay": [0.1, 1.0], "init_seed": [0, 1]})
    plan = plans.resolve(sweep_of_grid(grid))
    assert [len(c.runs) for c in plan.cohorts] == [4, 4]
    for cohort, batch_size in zip(plan.cohorts, (4, 8), strict=True):
        values = [(r.config.data.batch_size, r.config.optimizer.weight_decay, r.config.init_seed) for r in cohort.runs]
        assert values == [(batch_size, w, s) for w in (0.1, 1.0) for s in (0, 1)]
    assert len({run.id for run in plan.runs}) == 8


def test_budgets_of_one_cohort_become_segments(sweep_of_grid):
    plan = plans.resolve(sweep_of_grid(product({"tokens": [640, 320, 640 * 2], "init_seed": [0, 1]})))
    assert plans.as_json(plan)["cohorts"][0]["segments"] == 3
    assert len(plan.cohorts) == 1


def test_the_plan_warns_of_runs_that_training_will_refuse(sweep_of_grid):
    plan = plans.resolve(sweep_of_grid(together({"tokens": [640, 1280, 1600], "data.max_epochs": [1.0, 1.0, 3.0]})))
    (name,) = plan.data

    def warnings(tokens, qualifier=""):
        printed = costs.lines(plan, {name: (tokens, qualifier)}, 1e12, "here")
        return [line for line in printed if line.startswith("warning")]

    assert warnings(2000) == []
    assert not any(line.startswith("warning") for line in costs.lines(plan, {}, 1e12, "here"))
    (line,) = warnings(1000)
    assert "1 run(s) pass over their text" in line
    assert "at most 1.28 times instead of 1, and training refuses" in line
    (line,) = warnings(320, "about ")
    assert "3 run(s)" in line
    assert warnings(0) == []
    assert "at most about 5 times instead of 3, and training may refuse" in line


def test_the_json_names_cohorts_runs_and_whole_configs(sweep_of_grid):
    decoded = json.loads(json.dumps(plans.as_json(plans.resolve(sweep_of_grid([{"optimizer.weight_decay": 0.7}])))))
    (cohort,) = decoded["cohorts"]
    assert cohort.keys() == {"cohort", "segments", "runs"}
    (run,) = cohort["runs"]
    assert run.keys() == {"run_id", "config"}
    assert run["config"]["optimizer"]["weight_decay"] == 0.7
    assert run["config"]["model"]["d_model"] == 16


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "grid has no points"),
        (
            [{"optimizer.weigth_decay": 1.0}],
            "grid point 0: config.train.optimizer.*weigth_decay.*did you mean 'weight_d",
        ),
        ([{}, {"optimiser": 1.0}], "grid point 1: config.train has no key 'optimiser'; did you mean 'optimizer'"),
        ([{"tokens.x": 1}], "grid point 0: config.train.tokens has no key 'x'"),
        ([{"optimizer.weight_decay": "much"}], "grid point 0.*weight_decay"),
        ([{"model.n_heads": 3}], "grid point 0.*config.train.model.n_heads = 3.*doesn't divide"),
        ([{"init_seed": 1}, {"init_seed": 0}, {"init_seed": 1}], "grid points 0 and 2 are the same run"),
        ([{}, {"data.bpe_vocab_size": 290}], "two different data sets are named 'main'"),
    ],
)
def test_invalid_grids_are_refused_before_anything_runs(sweep_of_grid, grid, message):
    with pytest.raises(ConfigError, match=message):
        plans.resolve(sweep_of_grid(grid))


def test_an_unknown_section_of_the_sweep_is_refused(sweep_of_grid):
    with pytest.raises(ConfigError, match="config has no key 'evaluations'; did you mean 'evaluation'"):
        sweep_of_grid([{}], evaluations={})
    with pytest.raises(ConfigError, match="config.evaluation.quantize.bits"):
        sweep_of_grid([{}], evaluation={"quantize": {"bits": (1,)}})


def test_the_record_holds_the_sweep_and_refuses_another(sweep_of_grid, tmp_path):
    workdir = epath.Path(tmp_path / "sweep")
    sweep = sweep_of_grid(product({"init_seed": [0, 1]}))
    plan = plans.resolve(sweep)
    plan = records.pin(workdir, plan, {"jax": "1"})
    assert records.recorded_plan(workdir) == plan
    assert plan.stacks == plan.cohorts

    other = sweep_of_grid(product({"init_seed": [0, 2]}))
    before = (workdir / "sweep.json").read_text()
    with pytest.raises(
        ConfigError,
        match="doesn't contain: 1 of its 2 runs.*1 of this sweep's.*"
        "init_seed: 0 and 1 in the directory, 0 and 2 in this sweep",
    ):
        records.pin(workdir, plans.resolve(other), {})
    assert (workdir / "sweep.json").read_text() == before


def test_other_evaluations_of_the_same_runs_replace_the_recorded_ones(sweep_of_grid, tmp_path):
    workdir = epath.Path(tmp_path)
    plain, changed = sweep_of_grid([{}]), sweep_of_grid([{}], evaluation={"quantize": {"bits": (5,)}})
    records.pin(workdir, plans.resolve(plain), {"jax": "1"})
    records.pin(workdir, plans.resolve(changed), {"jax": "2"})
    record = records.read_record(workdir)
    assert record["evaluation"]["quantize"]["bits"] == [5]
    assert record["versions"] == {"jax": "1"}


def test_newer_damaged_and_missing_sweep_records_are_refused(sweep_of_grid, tmp_path):
    workdir = epath.Path(tmp_path)
    sweep = sweep_of_grid([{}])
    (tmp_path / "sweep.json").write_text(json.dumps({"layout": 99}))
    with pytest.raises(ConfigError, match="written by newer code"):
        records.pin(workdir, plans.resolve(sweep), {})
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        records.read_record(workdir)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ConfigError, match="no sweep.json"):
        records.read_record(workdir)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="has runs but no sweep.json"):
        records.pin(workdir, plans.resolve(sweep), {})


def test_changed_checkpoint_steps_are_refused_and_a_changed_mesh_is_accepted(tiny, vary, tmp_path):
    workdir = epath.Path(tmp_path)

    def plan(changes):
        return plans.resolve(plans.read_sweep(to_config_dict(vary(tiny, changes))))

    records.pin(workdir, plan({}), {})
    records.join(workdir, plan({"mesh.data": 2, "mapping": "vmap", "tensorboard": True}))
    with pytest.raises(ConfigError, match="checkpoint.every: 5 in the directory, 6 in this sweep"):
        records.join(workdir, plan({"checkpoint.every": 6}))


def test_a_sweep_without_train_or_grid_is_refused(sweep_of_grid):
    with pytest.raises(ConfigError, match="config has no 'train'"):
        plans.read_sweep(ConfigDict({"grid": [{}]}))


def test_a_single_run_is_a_cohort_of_one(tiny):
    plan = plans.resolve(plans.read_sweep(to_config_dict(tiny)))
    assert [len(c.runs) for c in plan.cohorts] == [1]
    assert plan.runs[0].config == tiny


def test_a_grid_point_does_not_change_later_points(sweep_of_grid):
    """Shallow copies share sections of a ConfigDict: a setting of one point would become the default of the next."""
    plan = plans.resolve(sweep_of_grid([{"optimizer.weight_decay": 0.7}, {"init_seed": 1}, {}]))
    assert [run.config.optimizer.weight_decay for run in plan.runs] == [0.7, 0.1, 0.1]


def test_every_type_of_setting_reaches_its_run(sweep_of_grid, tiny):
    values = {"init_seed": 5, "data_seed": 6, "optimizer.learning_rate": 1, "optimizer.schedule": "linear",
              "optimizer.warmup_fraction": 0.5, "optimizer.clip_norm": 0.0, "tokens": 6400,
              "data.train_domains": ("prose", "code"), "model.tied": True}  # fmt: skip
    (run,) = plans.resolve(sweep_of_grid([values])).runs
    decoded = plans.leaves(dataclasses.asdict(run.config))
    assert {key: decoded[key] for key in values} == values
    assert isinstance(decoded["optimizer.learning_rate"], float)


def test_integers_may_be_given_as_whole_floats(sweep_of_grid):
    (run,) = plans.resolve(sweep_of_grid([{"tokens": 6.4e3, "init_seed": 2.0}])).runs
    assert (run.config.tokens, run.config.init_seed) == (6400, 2)
    with pytest.raises(ConfigError, match=r"grid point 0.*6400\.5"):
        plans.resolve(sweep_of_grid([{"tokens": 6400.5}]))


def test_members_of_a_cohort_differ_in_traced_numbers_only(sweep_of_grid):
    numbers = [{"optimizer.learning_rate": 1e-3}, {"optimizer.weight_decay": 0.5}, {"optimizer.schedule": "linear"},
               {"optimizer.warmup_fraction": 0.3}, {"optimizer.clip_norm": 0.1}, {"init_seed": 3}, {"data_seed": 4},
               {"tokens": 1280}]  # fmt: skip
    assert len(plans.resolve(sweep_of_grid(numbers)).cohorts) == 1
    shapes = [{}, {"model.d_ff": 64}, {"data.batch_size": 8}, {"data.sequence_length": 8}]
    assert len(plans.resolve(sweep_of_grid(shapes)).cohorts) == 4


def test_members_of_a_cohort_must_share_their_compute_settings(sweep_of_grid):
    grid = [{"init_seed": 0}, {"init_seed": 1, "compute.remat": True}]
    with pytest.raises(ConfigError, match=r"grid points 0 and 1 are members of one cohort.*config.train.compute"):
        plans.resolve(sweep_of_grid(grid))


def test_the_corpus_can_be_an_axis_with_named_data(sweep_of_grid):
    grid = together({"data.name": ["main", "small"], "data.validation_fraction": [0.1, 0.2]})
    plan = plans.resolve(sweep_of_grid(grid))
    assert plan.fingerprints.keys() == {"main", "small"}
    assert len(plan.cohorts) == len({run.id for run in plan.runs}) == 2


def test_runs_added_by_a_larger_grid_get_separate_stacks(sweep_of_grid, tmp_path):
    workdir = epath.Path(tmp_path)
    seed = product({"init_seed": [0, 1]})
    first = records.pin(workdir, plans.resolve(sweep_of_grid(seed)), {"jax": "1"})
    larger = product({"init_seed": [0, 1, 2]}) + [{"data.batch_size": 8}]
    second = records.pin(workdir, plans.resolve(sweep_of_grid(larger)), {"jax": "2"})
    assert second.stacks[0] == dataclasses.replace(first.stacks[0], shape=second.stacks[0].shape)
    assert [[run.config.init_seed for run in stack.runs] for stack in second.stacks] == [[0, 1], [2], [0]]
    assert second.stacks[0].id == second.stacks[1].id == first.cohorts[0].id
    assert len({stack.folder for stack in second.stacks}) == 3
    assert records.recorded_plan(workdir) == second
    assert plans.as_json(second)["cohorts"][0]["cohort"] == first.cohorts[0].id
    with pytest.raises(
        ConfigError, match=r"doesn't contain: 2 of its 4 runs.*init_seed: 0 and 1 and 2 in the directory, 0 and 1"
    ):
        records.pin(workdir, plans.resolve(sweep_of_grid(seed)), {})


def test_a_stack_size_limit_divides_cohorts_without_changing_ids(sweep_of_grid, tmp_path):
    grid = product({"init_seed": list(range(7))})
    whole = plans.resolve(sweep_of_grid(grid))
    limited = plans.resolve(sweep_of_grid(grid, parts={"most_members": 3}))
    assert plans.as_json(limited) == plans.as_json(whole)
    stacks = records.pin(epath.Path(tmp_path), limited, {}).stacks
    assert [len(stack.runs) for stack in stacks] == [3, 3, 1]
    # Recorded stacks stay as they are if the limit changes.
    assert records.pin(epath.Path(tmp_path), whole, {}).stacks == stacks


def test_a_small_device_divides_cohorts_or_is_refused(sweep_of_grid, tmp_path):
    grid = product({"init_seed": list(range(8))})
    one = most_members(plans.resolve(sweep_of_grid(grid)).cohorts[0].shape, 8, StackConfig())
    assert one == 8
    sweep = sweep_of_grid(grid, parts={"memory_gb": 0.002})
    sizes = [len(stack.runs) for stack in records.with_stacks(epath.Path(tmp_path), plans.resolve(sweep)).stacks]
    assert sum(sizes) == 8
    assert 1 < len(sizes) <= 8
    with pytest.raises(ConfigError, match=r"needs about 0.00033 GB of a device's 1e-05 GB of memory; set .*remat"):
        records.pin(epath.Path(tmp_path), plans.resolve(sweep_of_grid(grid, parts={"memory_gb": 1e-5})), {})
    assert not (tmp_path / "sweep.json").exists()


def test_no_field_name_collides_with_a_config_dict_method(sweep_of_grid):
    """config.tasks.items would be the method: a field of such a name can't be overridden."""

    def names(config):
        for field in dataclasses.fields(config):
            yield field.name
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from names(value)

    fields = {*names(TrainConfig()), *names(EvalConfig())}
    assert {name for name in fields if hasattr(ConfigDict, name)} == set()
