"""Paper A's suite: its runs, what the reduced suite preserves, and its resolved plans.

`python tests/sweeps/studies/paper_a/test_paper.py` writes the golden files anew: look at what
changed before you commit it.
"""

import collections
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from eval.config import GroupsConfig
from olmo_jax.config import ConfigError
from olmo_jax.config.model import head_count
from sweeps.planning import costs
from sweeps.planning.costs import total_weight_decay
from sweeps.planning.plan import leaves, read_sweep, resolve
from sweeps.studies.paper_a import paper

GOLDEN = pathlib.Path(__file__).parent / "golden"
EVERYTHING = "cpu,seeds=5,lr_rule=sqrt,steps_matched,pythia,tied,corpus"
ARGUMENTS = {
    "paper": "paper",
    "paper-blocks": "paper,sizes=blocks",
    "paper-ladder": "paper,lr=ladder",
    "paper-neighbours": "paper,lr=neighbours",
    "gpu": "gpu",
    "gpu-blocks": "gpu,sizes=blocks",
    "cpu": "cpu",
    "cpu-blocks": "cpu,sizes=blocks",
    "cpu-neighbours": "cpu,lr=neighbours",
    "cpu-everything": EVERYTHING,
}
# The full suite that a reduced one is compared with, by the name of the reduced one.
FULL = {
    "gpu": "paper",
    "cpu": "paper",
    "gpu-blocks": "paper-blocks",
    "cpu-blocks": "paper-blocks",
    "cpu-neighbours": "paper-neighbours",
}


def plan_of(argument):
    """The plan, with a fingerprint that doesn't depend on this machine's packages."""
    return resolve(read_sweep(paper.get_config(argument)), fingerprint=lambda data: f"text-of-{data.name}")


def resolved(plan):
    """Return every value of every run: values common to all, then those common to a cohort, then those of each run."""
    runs = [[leaves(dataclasses.asdict(run.config)) for run in cohort.runs] for cohort in plan.cohorts]
    common = shared([values for cohort in runs for values in cohort])
    cohorts = []
    for cohort, values in zip(plan.cohorts, runs, strict=True):
        in_cohort = shared([less(v, common) for v in values])
        per_run = [less(less(v, common), in_cohort) for v in values]
        steps = [
            {"steps": run.config.total_steps, "dose": float(f"{total_weight_decay(run.config):.4g}")}
            for run in cohort.runs
        ]
        rows = [o | s for o, s in zip(per_run, steps, strict=True)]
        cohorts.append({"segments": len(cohort.segment_ends), "shared": in_cohort, "runs": rows})
    return {"shared": common, "cohorts": cohorts, "notes": list(plan.notes)}


def shared(rows):
    return {k: v for k, v in rows[0].items() if all(row.get(k) == v for row in rows)}


def less(values, known):
    return {k: v for k, v in values.items() if k not in known}


def as_text(plan):
    return json.dumps(resolved(plan), indent=1, sort_keys=True) + "\n"


@pytest.fixture(scope="module")
def plans():
    return {name: plan_of(argument) for name, argument in ARGUMENTS.items()}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_resolved_plan_matches_the_golden_file(plans, name):
    assert as_text(plans[name]) == (GOLDEN / f"paper-{name}.json").read_text(), "see this file's first lines"


@pytest.mark.parametrize("scale", [name for name in ARGUMENTS if name != "cpu-everything"])
def test_the_suite_has_108_runs_of_6_sizes_and_18_configurations(plans, scale):
    plan = plans[scale]
    assert len({run.id for run in plan.runs}) == len(plan.runs) == 108
    sizes = collections.Counter((run.config.name, run.config.model) for run in plan.runs)
    assert len(sizes) == 6
    assert set(sizes.values()) == {18}
    assert {run.config.optimizer.final_fraction for run in plan.runs} == {0.0, 0.01, 0.1}


@pytest.mark.parametrize("scale", FULL)
def test_a_reduced_suite_keeps_ratios_cumulative_weight_decay_and_steps(plans, scale):
    """Run by run: the same point of the grid in full and reduced."""
    full, small = plans[FULL[scale]].runs, plans[scale].runs
    for field in (
        lambda c: c.tokens,
        lambda c: c.data.batch_size,
        lambda c: c.optimizer.learning_rate,
        lambda c: c.optimizer.weight_decay,
    ):
        ratios = [field(a.config) / field(b.config) for a, b in zip(full, small, strict=True)]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
    doses = [(total_weight_decay(a.config), total_weight_decay(b.config)) for a, b in zip(full, small, strict=True)]
    # 20 steps have no warm-up, and the sum of the cosine is coarse.
    assert all(b == pytest.approx(a, rel=0.05) for a, b in doses)
    assert min(run.config.total_steps for run in small) >= 20
    # The divisor of the width is one number, and where the sizes count the head that of the vocabulary goes with it.
    widths = [a.config.model.d_model / b.config.model.d_model for a, b in zip(full, small, strict=True)]
    assert len(set(widths)) == 1
    per_dimension = [run.config.model.vocab_size / run.config.model.d_model for run in (full[0], small[0])]
    if "blocks" not in scale:
        assert per_dimension[1] / per_dimension[0] == pytest.approx(0.5 if "cpu" in scale else 1, rel=0.005)
    assert any("untestable" in note for note in plans[scale].notes)


# methods.md, section 7: width, layers and count of each label with the head, 50304 rows of W, norms with a scale.
WITH_HEAD = {
    "4m": (64, 8, 3.74e6),
    "8m": (128, 8, 8.54e6),
    "14m": (192, 8, 14.38e6),
    "20m": (256, 8, 21.28e6),
    "34m": (320, 10, 32.5e6),
    "75m": (512, 12, 76.1e6),
}


def test_labels_count_the_head_by_default():
    models = {run.config.name: run.config.model for run in plan_of("paper,norm=rms").runs}
    assert {label: (m.d_model, m.n_layers) for label, m in models.items()} == {
        label: size[:2] for label, size in WITH_HEAD.items()
    }
    for label, model in models.items():
        d, layers = model.d_model, model.n_layers
        assert head_count(model) == 16 * d**2 * layers + 50304 * d + (2 * layers + 1) * d
        assert head_count(model) == pytest.approx(WITH_HEAD[label][2], rel=0.002)
    assert {(m.norm, m.norm_eps) for m in models.values()} == {("rms_norm", 1e-6)}


def test_the_plan_prints_the_counts(plans):
    printed = "\n".join(costs.lines(plans["paper"], {}, 1e12, "here"))
    assert "3,743,744 with the unembedding alone" in printed  # 4m without its norms' scales
    assert "4m 3.74M, 8m 8.54M, 14m 14.4M, 20m 21.3M, 34m 32.5M, 75m 76.1M" in printed


def test_norm_schedule_and_quantisation_change_nothing_else(plans):
    changed = plan_of("cpu,norm=rms,schedule=linear,quantize=group128")
    for run, other in zip(plans["cpu"].runs, changed.runs, strict=True):
        model = dataclasses.replace(run.config.model, norm="rms_norm", norm_eps=1e-6)
        optimizer = dataclasses.replace(run.config.optimizer, schedule="linear")
        assert dataclasses.replace(run.config, model=model, optimizer=optimizer) == other.config
    assert changed.evaluation.quantize.bits == ()
    assert changed.evaluation.quantize.groups.bits == (4, 3)
    assert plans["cpu"].evaluation.quantize.groups.bits == ()
    both = plan_of("paper,quantize=channel+group128").evaluation.quantize
    assert (both.bits, both.groups) == ((4, 3), GroupsConfig((4, 3), 128, 524_288, 512))


def test_peaks_follow_their_rule(plans):
    def default(name, label):
        runs = [r.config for r in plans[name].runs if r.config.name == label and r.config.data.batch_size == 128]
        return {c.tokens: c.optimizer.learning_rate for c in runs[:3]}

    # DataDecide's published peaks of 4M, 8M and 14M are 1.4e-2, 1.1e-2 and 9.2e-3.
    for label, peak in (("4m", 1.4e-2), ("8m", 1.1e-2), ("14m", 9.2e-3)):
        assert list(default("paper-ladder", label).values()) == pytest.approx([peak] * 3, rel=0.03)
    assert default("paper-neighbours", "20m") == {8 * 10**9: 3e-3, 32 * 10**9: 1e-3, 128 * 10**9: 1e-3}


def test_weight_decay_that_the_steps_can_not_hold_is_lowered_and_called_untestable(plans):
    ladder = plan_of("cpu,lr=ladder")
    fewer = [total_weight_decay(a.config) / total_weight_decay(b.config)
             for a, b in zip(plans["paper-ladder"].runs, ladder.runs, strict=True)]  # fmt: skip
    np.testing.assert_allclose(fewer, np.mean(fewer), rtol=0.05)
    assert np.mean(fewer) > 2
    one_step = [r.config.optimizer.learning_rate * r.config.optimizer.weight_decay for r in ladder.runs]
    assert sorted(one_step)[: -2 * 6][-1] <= 0.5 + 1e-6  # all but those with 10 and 100 times the rate
    assert any("untestable here: the full suite's cumulative weight decays" in note for note in ladder.notes)


def test_items_are_a_target_of_fine_tuning():
    assert plan_of("cpu,items=arc_easy").evaluation.finetune.targets == ("code", "task:arc_easy")
    assert plan_of("gpu,text=pile.txt,items=arc_easy").evaluation.finetune.targets == ("task:arc_easy",)


def test_pairs_are_replicated():
    runs = [r.config for r in plan_of("cpu,pythia,tied,pair_seeds=3").runs][108:]
    assert collections.Counter(c.name for c in runs) == {"pythia-14m": 3, "pythia-14m-sequential": 3, "4m-tied": 3}
    assert {(c.init_seed, c.data_seed) for c in runs} == {(k, k) for k in range(3)}


def test_default_cumulative_weight_decay_matches_the_methods_document(plans):
    assert total_weight_decay(plans["paper"].runs[4].config) == pytest.approx(4, rel=0.05)


def test_options_add_runs(plans):
    runs = plans["cpu-everything"].runs
    assert len({run.id for run in runs}) == len(runs) == 108 + 6 * 4 + 6 * 2 + 2 + 1 + 6
    replicates = [r.config for r in runs if r.config.init_seed]
    assert {(c.init_seed, c.data_seed) for c in replicates} == {(k, k) for k in range(1, 5)}
    assert {(c.tokens, c.data.batch_size) for c in replicates} == {(81_920, 4)}
    rates = {c.data.batch_size: c.optimizer.learning_rate for c in (r.config for r in runs) if c.tokens == 327_680}
    assert rates[16] / rates[4] == pytest.approx(2, rel=1e-5)
    (pythia, twin) = (r.config for r in runs if r.config.name.startswith("pythia"))
    assert dataclasses.replace(pythia.model, parallel=False) == twin.model != pythia.model
    assert [r.config.model.tied for r in runs if r.config.name == "4m-tied"] == [True]
    assert {r.config.data.train_domains for r in runs if r.config.data.name == "code"} == {("code",)}
    steps = collections.Counter(
        r.config.total_steps for r in runs if r.config.name == "8m" and not r.config.init_seed and r.config.tokens % 3
    )
    assert steps[320] >= 5  # 8B at 32, 16B at 64, 32B at 128, 64B at 256, 128B at 512


def test_every_option_resolves_in_full():
    assert len(plan_of("paper,seeds=5,lr_rule=linear,steps_matched,pythia,tied,corpus").runs) == 153


def test_all_seeds_replicate_every_configuration():
    plan = plan_of("cpu,all_seeds=2")
    assert len(plan.runs) == 216
    assert collections.Counter(run.config.init_seed for run in plan.runs) == {0: 108, 1: 108}
    more = plan_of("cpu,all_seeds=2,seeds=5")
    assert {run.id for run in plan.runs} < {run.id for run in more.runs}
    assert {run.id for run in plan_of("cpu,seeds=5").runs} < {run.id for run in more.runs}
    assert len(more.runs) == 216 + 6 * 3


def test_a_users_text_replaces_the_built_in_corpus():
    plan = plan_of("gpu,text=pile/*.jsonl.zst,tokenizer=neox.json,corpus,other=code/*.txt")
    data = {run.config.data.name: run.config.data for run in plan.runs}
    assert data["main"].files == ("pile/*.jsonl.zst",)
    assert data["main"].tokenizer == data["other"].tokenizer == "neox.json"
    assert data["other"].files == ("code/*.txt",)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("tpu", "no scale 'tpu'; scales: paper, gpu, cpu"),
        ("cpu,sedes=5", "no option 'sedes=5'; options: seeds="),
        ("cpu,seeds=3", "seeds=3 needs a whole number of 5 or more"),
        ("cpu,seeds", "no option 'seeds'"),
        ("cpu,lr_rule=cubic", "no lr_rule=cubic; rules: fixed, sqrt, linear"),
        ("cpu,corpus,text=a.txt", "needs other=GLOB.*tokenizer=FILE"),
        ("cpu,corpus,other=a.txt", "needs text=GLOB"),
        ("cpu,other=a.txt", "is the text of the option corpus"),
        ("cpu,sizes=heads", "no sizes=heads; choices: head, blocks"),
        ("cpu,schedule=step", "no schedule=step; choices: cosine, linear, wsd"),
        ("cpu,pair_seeds=3", "add one of them"),
        ("paper,vocabulary=100278", "vocabulary of 100,278 gives 4m 6.9M parameters with the head.*sizes=blocks"),
    ],
)
def test_an_unknown_argument_is_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        paper.get_config(argument)


if __name__ == "__main__":
    for file, given in ARGUMENTS.items():
        (GOLDEN / f"paper-{file}.json").write_text(as_text(plan_of(given)))
