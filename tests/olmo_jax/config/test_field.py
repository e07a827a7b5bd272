"""Every field of every configuration is declared with a role and help, and its default satisfies its bound."""

import dataclasses

import pytest

from eval.config import EvalConfig
from olmo_jax.config import ConfigError, InterventionConfig, OptimizerConfig, TrainConfig, from_config_dict
from olmo_jax.config.field import Role, declared, each, reset, setting, settings, within
from olmo_jax.config.validation import Settings
from sweeps.planning.stack_config import StackConfig

FIELDS = [
    (type(config).__name__, key, field, value)
    for config in (TrainConfig(), EvalConfig(), StackConfig())
    for key, field, value in settings(config)
]


@pytest.mark.parametrize("kind, key, field, value", FIELDS, ids=[f"{kind}.{key}" for kind, key, _, _ in FIELDS])
def test_a_field_has_a_role_and_a_meaning_and_its_default_is_within_its_bound(kind, key, field, value):
    assert "setting" in field.metadata, "declare it with olmo_jax.config.field.setting"
    meaning, bound = declared(field).meaning, declared(field).bound
    assert meaning[0].isupper() or not meaning[0].isalpha()
    assert meaning.endswith(".")
    assert bound is None or bound.holds(value)


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    rate: float = setting(0.5, Role.TRACED, "A rate.", bound=within(0, 1))
    bits: tuple[int, ...] = setting((4,), Role.OBSERVATION, "Widths.", bound=each(within(2, 8)))


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    inner: Inner = Inner()
    width: int = setting(8, Role.STATIC, "A width.")

    def check_fields(self, at):
        if self.width == self.inner.rate:
            raise ConfigError(f"{at}: both are the same")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"inner": {"rate": 1.5}}, r"c\.inner\.rate = 1\.5: needs a number in \[0, 1\]"),
        ({"inner": {"bits": (4, 9)}}, r"c\.inner\.bits = \(4, 9\): needs a number in \[2, 8\]"),
        ({"inner": {"rate": 1.0}, "width": 1}, "c: both are the same"),
    ],
)
def test_out_of_bound_and_contradictory_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(Outer, values, "c")


def test_reset_restores_defaults_of_a_role_in_nested_sections():
    changed = Outer(Inner(0.25, (3,)), 16)
    assert reset(changed, Role.TRACED) == Outer(Inner(0.5, (3,)), 16)
    assert reset(changed, Role.STATIC, Role.OBSERVATION) == Outer(Inner(0.25, (4,)), 8)


def test_settings_walks_through_sections_by_dotted_key():
    assert [(key, value) for key, _, value in settings(Outer())] == [
        ("inner.rate", 0.5),
        ("inner.bits", (4,)),
        ("width", 8),
    ]


def test_an_undeclared_field_is_static():
    field = dataclasses.field(default=1)
    assert declared(field).role is Role.STATIC


def test_model_fields_are_static_and_optimizer_numbers_are_traced():
    roles = {key: declared(field).role for key, field, _ in settings(TrainConfig())}
    assert {role for key, role in roles.items() if key.startswith("model.")} == {Role.STATIC}
    traced = {key for key, role in roles.items() if role is Role.TRACED}
    static = {f"optimizer.{name}" for name in ("name", "decay_embeddings", "decay_norms", "z_loss")}
    static |= {"intervention.penalty_metric"}
    numbers = {f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig)}
    numbers |= {f"intervention.{field.name}" for field in dataclasses.fields(InterventionConfig)}
    assert traced == numbers - static | {"tokens", "data.arithmetic.train_fraction"}
