"""The configuration reference: on the page, and on the terminal by section or setting."""

import pytest

from olmo_jax.config import ConfigError
from sweeps import cli
from sweeps.planning.reference import PAGE, lines, page, sections


def test_the_reference_page_matches_the_declarations():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m sweeps.planning.reference"


def test_reference_sections_are_those_of_a_sweep():
    keys = [section.key for section in sections()]
    assert keys[:4] == ["train", "train.model", "train.model.rope_scaling", "train.optimizer"]
    assert {"train.probe.texts", "train.data.arithmetic", "evaluation.finetune", "parts"} <= set(keys)


@pytest.mark.parametrize(
    "part, first, count",
    [
        ("train.optimizer", "config.train.optimizer: The optimiser, gradient clipping", 1),
        ("optimizer", "config.train.optimizer: The optimiser, gradient clipping", 1),
        ("config.train.probe", "config.train.probe: Geometry measured during training", 8),
        ("weight_decay", "config.train.optimizer", 2),
    ],
)
def test_the_reference_shows_a_section_or_a_setting(part, first, count):
    text = lines(part)
    assert text[0].startswith(first)
    assert sum(line.startswith("config.") for line in text) == count


def test_settings_are_shown_with_their_option_names(capsys):
    assert cli.main(["config", "weight_decay"]) == 0
    assert "  --config.train.optimizer.weight_decay=0.1  (>= 0, traced)" in capsys.readouterr().out.splitlines()


def test_an_unknown_setting_is_one_line_with_the_nearest_name(capsys):
    with pytest.raises(ConfigError, match="did you mean 'train.optimizer'"):
        lines("train.optimiser")
    assert cli.main(["config", "nothing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
