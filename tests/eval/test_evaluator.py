"""User-defined evaluations, as docs/evaluation.md describes them, and invalid input."""

import dataclasses
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from eval import evaluator as registry
from eval import results
from eval.check import check_evaluation
from eval.config import EvalConfig
from eval.evaluate import EvaluationError, evaluate, jobs
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.suite import evaluations
from olmo_jax.config import ConfigError, from_config_dict, to_config_dict
from olmo_jax.config.field import Role, setting
from olmo_jax.config.validation import Settings
from tests.eval.stored import metrics, stored

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md"
NOTHING_ELSE = {"quantize": {"bits": ()}, "dynamics": {"saturation": False}, "tokens_per_domain": 300, "batch_size": 8}


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """The registry of user-defined evaluators, emptied for the test."""
    monkeypatch.setattr(registry, "OWN", {})
    for module in ("eval.suite", "eval.evaluate"):
        monkeypatch.setattr(f"{module}.OWN", registry.OWN)
    return registry.OWN


@pytest.fixture
def example(own):
    """The module of the page's example."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    module = types.ModuleType("prune")
    exec(compile(code, "prune.py", "exec"), module.__dict__)  # noqa: S102
    return module


@dataclasses.dataclass(frozen=True)
class NormConfig(Settings):
    power: int = setting(2, Role.OBSERVATION, "Power of the norm.")


def config_with(**own):
    return from_config_dict(EvalConfig, NOTHING_ELSE | {"own": own}, "config.evaluation")


def made(kind="norm", names=("norm",), measure=None, check=None):
    """Register an evaluator with the given methods."""

    class Made(Evaluator[NormConfig]):
        config_type = NormConfig

        def evaluations(self):
            return [Evaluation(kind, name, {"power": self.config.power, "of": ("all",)}) for name in names]

        def check(self, data):
            if check:
                check(data)

        def measure(self, models, evaluation):
            if measure:
                return measure(models, evaluation)
            return [Measured({"power": float(self.config.power)}, {}) for _ in models.models]

    Made.kind = kind
    return evaluator(Made)


def run(trained, cohort, index, config):
    return evaluate(trained, cohort, index, config, lambda job: True)


def test_the_example_of_the_page_prunes_what_it_says(example, cohort, index, trained):
    config = example.get_config("smoke")
    assert config.evaluation.own.prune.shares == (0.5, 0.9)
    chosen = config_with(prune={"shares": [0.0, 0.9]})
    check_evaluation(chosen, cohort, index)
    assert run(trained, cohort, index, chosen)
    assert metrics(trained, "run0", "prune_0")["in_domain"] == metrics(trained, "run0", "lm_loss")["in_domain"]
    pruned = metrics(trained, "run0", "prune_0.9")
    assert pruned["rise/in_domain"] == pytest.approx(
        pruned["in_domain"] - metrics(trained, "run0", "lm_loss")["in_domain"]
    )
    assert pruned["rise/in_domain"] != 0
    columns = {column.name: column for column in results.declared(trained, "run1")}
    loss = columns["prune_0.9/code"]
    assert (loss.kind, loss.of) == ("loss", {"after": "prune", "share": 0.9, "domain": "code"})
    assert loss.meaning == "Without the smallest 0.9 of the weights: loss on code."
    assert columns["prune_0.9/rise/in_domain"].kind == "change"
    w_MIO = jax.random.normal(jax.random.key(0), (2, 10, 20))
    assert np.mean(np.asarray(example.without_smallest(w_MIO, 0.9)) == 0) == pytest.approx(0.9, abs=0.01)


def test_a_result_is_stored_once_and_measured_again_with_other_settings(cohort, index, trained):
    made()
    assert run(trained, cohort, index, config_with(norm={}))
    assert stored(trained, "run1", "norm")["metrics"] == {"power": 2.0}
    assert jobs(trained, cohort, config_with(norm={"power": 2})) == []
    assert {job.evaluation.name for job in jobs(trained, cohort, config_with(norm={"power": 3}))} == {"norm"}


def test_the_section_survives_the_command_line_and_the_record():
    made()
    config = EvalConfig(own={"norm": NormConfig(power=4)})
    assert to_config_dict(config).own.norm.power == 4
    again = from_config_dict(EvalConfig, to_config_dict(config), "config.evaluation")
    assert evaluations(again) == evaluations(config)
    assert from_config_dict(EvalConfig, dataclasses.asdict(config), "config.evaluation") == again


def test_an_evaluation_that_raises_leaves_the_others_done(cohort, index, trained, capsys):
    def measure(models, evaluation):
        if evaluation.name == "second":
            raise ZeroDivisionError("no\nweights")
        return [Measured({"one": 1.0}, {}) for _ in models.models]

    made("broken", ("first", "second", "third"), measure)
    made("norm")
    chosen = config_with(broken={}, norm={})
    with pytest.raises(EvaluationError, match=r"^evaluation second failed: ZeroDivisionError: no "
                       r"weights \(test_evaluator.py, line \d+\); correct it"):  # fmt: skip
        run(trained, cohort, index, chosen)
    assert "second failed: ZeroDivisionError" in capsys.readouterr().err
    left = [job.evaluation.name for job in jobs(trained, cohort, chosen)]
    assert left == ["second"]
    assert metrics(trained, "run0", "norm") == {"power": 2.0}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda models: [], "norm: 0 results for 2 models; needs one per model"),
        (
            lambda models: [Measured({"a": np.zeros(2)}, {})] * 2,
            "metric 'a' is of type ndarray; needs a Python int or float",
        ),
        (lambda models: [Measured({3: 1.0}, {})] * 2, "metric 3 is of type float"),
        (lambda models: [Measured({"a": True}, {})] * 2, "metric 'a' is of type bool"),
        (lambda models: [Measured({"a": np.float32(1)}, {})] * 2, "metric 'a' is of type float32"),
        (lambda models: [Measured({}, {"settings": 1})] * 2, "`more` has the reserved keys settings; rename them"),
        (lambda models: [Measured({}, {"a": np.zeros(2)})] * 2, "ndarray is not JSON serializable"),
    ],
)
def test_results_that_can_not_be_stored_are_refused(cohort, index, trained, results, message):
    made(measure=lambda models, evaluation: results(models))
    with pytest.raises(EvaluationError, match=message):
        run(trained, cohort, index, config_with(norm={}))
    assert not list(trained.glob("runs/*/results/norm*"))


def test_two_kinds_of_one_name_are_refused():
    made()
    with pytest.raises(ValueError, match=r"'norm' of .*test_evaluator.py is already defined in .*; rename it"):

        @evaluator
        class Other(Evaluator[NormConfig]):
            kind = "norm"

            def evaluations(self):
                return []

    with pytest.raises(ValueError, match=r"'gptq' of .* is already defined in .*quantization.py"):
        made("gptq")


def test_two_results_of_one_name_are_refused(cohort, index):
    made("norm", ("one",))
    made("other", ("one",))
    with pytest.raises(ConfigError, match="'one' is the name of two evaluations, of norm and other; rename one"):
        check_evaluation(config_with(norm={}, other={}), cohort, index)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm_loss", "name = 'lm_loss': would be read as a result of lm_loss; choose another"),
        ("gptq_3", "would be read as a result of gptq"),
        ("layer_0", "would be read as a result of probe"),
        ("a/b", "has to be a short file name"),
        ("../b", "has to be a short file name"),
        ("a@3", "has to be a short file name"),
        ("a" * 300, "has to be a short file name"),
    ],
)
def test_names_of_results_that_cannot_be_used_are_refused(cohort, index, name, message):
    made("norm", (name,))
    with pytest.raises(ConfigError, match=message):
        check_evaluation(config_with(norm={}), cohort, index)


def with_requirements(requires, settings=None, kind="norm"):
    """Register an evaluator whose results "first" and "second" require those that `requires` names for each."""

    class Requiring(Evaluator[NormConfig]):
        config_type = NormConfig

        def evaluations(self):
            listed = {name: Evaluation(kind, name, settings or {}) for name in ("first", "second")}
            return [
                evaluation._replace(requires=tuple(listed[other] for other in requires.get(name, ())))
                for name, evaluation in listed.items()
            ]

        def measure(self, models, evaluation):
            return [Measured({"one": 1.0}, {})] * len(models.models)

    Requiring.kind = "norm"
    return evaluator(Requiring)


def test_requirements_are_run_first_whatever_their_order(cohort, index, trained):
    with_requirements({"first": ("second",)})
    assert [e.name for e in evaluations(config_with(norm={})) if e.kind == "norm"] == ["second", "first"]
    (trained / "runs" / "run1" / "results").mkdir(exist_ok=True)
    order = []
    assert evaluate(trained, cohort, index, config_with(norm={}), lambda job: order.append(job.evaluation.name) or True)
    assert order.index("second") < order.index("first")


@pytest.mark.parametrize(
    ("requires", "settings", "message"),
    [
        (
            {"first": ("second",), "second": ("first",)},
            None,
            "(first|second), .* require each other",
        ),
        ({}, {"a": float("nan")}, "ValueError: Out of range float"),
        ({}, {"a": object()}, "TypeError: Object of type object is not JSON"),
    ],
)
def test_requirements_and_settings_that_cannot_be_used_are_refused(cohort, index, requires, settings, message):
    with_requirements(requires, settings)
    with pytest.raises(ConfigError, match=message):
        check_evaluation(config_with(norm={}), cohort, index)


def test_an_evaluation_of_another_kind_is_refused(cohort, index):
    with_requirements({}, kind="other")
    with pytest.raises(ConfigError, match="first: kind = 'other': needs to be 'norm'"):
        check_evaluation(config_with(norm={}), cohort, index)


def test_an_evaluator_without_a_configuration_class_is_refused():
    with pytest.raises(ValueError, match="'bare' of .* has no config_type; set it to the class of its section"):

        @evaluator
        class Bare(Evaluator[NormConfig]):
            kind = "bare"

            def evaluations(self):
                return []


def test_a_kind_that_nobody_defines_is_refused_before_training_and_its_results_stay(cohort, index, trained, own):
    made()
    assert run(trained, cohort, index, config_with(norm={}))
    own.clear()
    with pytest.raises(ConfigError, match=r"own = 'norm': isn't defined; name the --config=FILE"):
        check_evaluation(config_with(norm={}), cohort, index)
    assert jobs(trained, cohort, config_with(norm={})) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"powr": 2}, r"own.norm has no key 'powr'; did you mean 'power'"),
        ({"power": 0.5}, r"own.norm.power = 0.5: needs a value of type int"),
        (3, r"own.norm = 3: needs a section with keys"),
    ],
)
def test_a_section_is_checked(cohort, index, section, message):
    made()
    with pytest.raises(ConfigError, match=message):
        check_evaluation(config_with(norm=section), cohort, index)


def test_an_error_of_a_check_is_one_line(cohort, index):
    made(check=lambda data: data.matrices["nowhere"])
    with pytest.raises(ConfigError, match=r"^config.evaluation.own.norm: KeyError: .*nowhere.* \(.*line \d+\)"):
        check_evaluation(config_with(norm={}), cohort, index)
