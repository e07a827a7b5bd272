"""Configurations from files: `--config=FILE[:arg]` and its `--config.a.b=value` overrides."""

import os
import re
from collections.abc import Sequence
from typing import Any


def load_config(arguments: Sequence[str]) -> Any:
    """The ConfigDict of `--config=FILE[:arg]` with its `--config.a.b=value` overrides, in ml_collections' way.

    Raises ConfigError naming the file and the key: no such file, a file that fails, an unknown key, a value of the
    wrong type, or a key that the file's own grid sets (the override would be lost).
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from olmo_jax.config import ConfigError

    name = _file_name(arguments)
    file = name.split(":")[0]
    if not os.path.isfile(file):
        raise ConfigError(f"--config={name}: no file {file}; give the path of a .py file with get_config")

    def parse(given: Sequence[str]) -> Any:
        values = flags.FlagValues()
        argv = ["olmo-jax", *given]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        try:
            values(argv)
            return values.config
        except Exception as error:  # noqa: BLE001  the file is the user's own program and may raise anything
            cause = next((e for e in _causes(error) if isinstance(e, ConfigError)), error)
            text = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
            raise ConfigError(f"{file}: {text}") from error

    plain = parse([f"--config={name}"])
    if not isinstance(plain, ConfigDict):
        raise ConfigError(f"{file}: get_config returned {type(plain).__name__}; it must return a ConfigDict")
    _check_keys(f"{file}: config", plain, arguments)
    for key in override_keys(arguments):
        if any(f"train.{k}" == key for point in plain.get("grid", ()) for k in point):
            raise ConfigError(f"{file}: config.{key} is set by the file's grid, point by point; change it there")
    return parse(
        sorted(arguments, key=lambda argument: not argument.startswith("--config="))
    )  # the file before its keys


def _check_keys(where: str, config: Any, arguments: Sequence[str]) -> None:
    """Raises ConfigError for an override of a key that isn't there; ml_collections would only say AttributeError."""
    from ml_collections import ConfigDict

    from olmo_jax.config import ConfigError, unknown_key

    for key in override_keys(arguments):
        at = config
        for part in key.split("."):
            if not isinstance(at, ConfigDict) or part not in at:
                place = where + (f".{key.rsplit('.', 1)[0]}" if "." in key else "")
                raise ConfigError(unknown_key(place, part, at if isinstance(at, ConfigDict) else ()))
            at = at[part]


def override_evaluation(evaluation: Any, arguments: Sequence[str]) -> Any:
    """A sweep's evaluations with `--config.evaluation.a=value` overrides, where no file is named.

    Raises ConfigError for a key that isn't of the evaluations, and for a value of the wrong type.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from olmo_jax.config import ConfigError, from_config_dict, to_config_dict

    for key in override_keys(arguments):
        if not key.startswith("evaluation."):
            raise ConfigError(f"--config.{key}: what is recorded of a sweep takes config.evaluation alone; name its "
                              "--config=FILE too")  # fmt: skip
    config = ConfigDict({"evaluation": to_config_dict(evaluation)})
    _check_keys("--config", config, arguments)
    values, argv = flags.FlagValues(), ["olmo-jax", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except Exception as error:  # noqa: BLE001  absl and ml_collections raise several of their own
        raise ConfigError(f"{' '.join(arguments)}: {str(error).strip().splitlines()[-1]}") from error
    return from_config_dict(type(evaluation), config.evaluation, "config.evaluation")


def _file_name(arguments: Sequence[str]) -> str:
    from olmo_jax.config import ConfigError

    names = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    if len(names) != 1:
        raise ConfigError(f"give --config=FILE once (found {len(names)}), then its overrides as --config.key=value")
    return names[0]


def override_keys(arguments: Sequence[str]) -> list[str]:
    """The dotted keys that the overrides among some arguments set."""
    return [m[1] for a in arguments if (m := re.match(r"--(?:no)?config\.([^=]+)", a))]


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (following := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(following)
    return found
