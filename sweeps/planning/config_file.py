"""Load configurations from files: `--config=FILE[:arg]` and its `--config.a.b=value` overrides."""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from sweeps.planning.config_names import config_path, named_configs

_WANTED = {
    bool: "true or false",
    int: "a whole number such as 1000 or 1e3",
    float: "a number such as 0.5 or 1e-3",
    tuple: "a tuple such as (1, 2) or ('a', 'b')",
}
_RAISED_AGAIN = "Error whilst parsing config file"
_LONGEST_WHOLE = 30  # digits; without a limit, 1e999999 would be written out in full


def load_config(arguments: Sequence[str]) -> Any:
    """Return the ConfigDict of `--config=FILE[:arg]` with its `--config.a.b=value` overrides, as ml_collections does.

    FILE is the path of a file, which can import the files beside it, or the name of a configuration of the library
    (config_names.py).

    Raises ConfigError, naming the file and the key, for a missing file, a file that raises an error, an unknown key, a
    value of the wrong type, and a key that the file's own grid sets (the override would be lost).
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from olmo_jax.config import ConfigError

    given = _file_name(arguments)
    named, colon, argument = given.partition(":")
    file = config_path(named)
    _check_source(given, file)

    def parse(flag_arguments: Sequence[str], default: Any = None) -> Any:
        values = flags.FlagValues()
        argv = ["olmo-jax", *flag_arguments]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        try:
            with _importable(os.path.dirname(os.path.abspath(file))):
                values(argv)
                return values.config
        except (Exception, SystemExit) as error:  # noqa: BLE001  the user's own file may raise anything
            raise ConfigError(_refused_value(file, default, error) or _what_failed(file, error)) from error

    source = f"--config={file}{colon}{argument}"
    plain = parse([source])
    if not isinstance(plain, ConfigDict):
        raise ConfigError(f"{file}: get_config returned {type(plain).__name__}; it must return a ConfigDict")
    _check_keys(f"{file}: config", plain, arguments)
    for key in override_keys(arguments):
        if any(f"train.{k}" == key for point in plain.get("grid", ()) for k in point):
            raise ConfigError(f"{file}: config.{key} is set by the points of the file's grid; change it in the grid")
    overrides = [override for override in arguments if not override.startswith("--config=")]
    return parse([source, *_whole_numbers(plain, overrides)], plain)


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Let a configuration file import the files beside it, as a script can."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the file has removed it itself
            sys.path.remove(folder)


def _check_keys(where: str, config: Any, arguments: Sequence[str]) -> None:
    """Raise ConfigError for an override of an unknown key; ml_collections would only say AttributeError."""
    from ml_collections import ConfigDict

    from olmo_jax.config import ConfigError, unknown_key

    for key in override_keys(arguments):
        at, place = config, where
        for part in key.split("."):
            if not isinstance(at, ConfigDict) or part not in at:
                # A sweep's settings of a run lie below `train`, those of a single run don't.
                for other in (f"train.{key}", key.removeprefix("train.")):
                    if other != key and _has(config, other):
                        raise ConfigError(f"{place} has no key '{part}'; did you mean --config.{other}?")
                raise ConfigError(unknown_key(place, part, at if isinstance(at, ConfigDict) else ()))
            at, place = at[part], f"{place}.{part}"


def _has(config: Any, key: str) -> bool:
    """Return whether the configuration has a dotted key."""
    from ml_collections import ConfigDict

    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def override_evaluation(evaluation: Any, arguments: Sequence[str]) -> Any:
    """Return a sweep's evaluations with `--config.evaluation.a=value` overrides, for a command without --config=FILE.

    Raises ConfigError for a key outside config.evaluation, and for a value of the wrong type.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from olmo_jax.config import ConfigError, from_config_dict, to_config_dict

    for key in override_keys(arguments):
        if not key.startswith("evaluation."):
            raise ConfigError(f"--config.{key}: only settings of config.evaluation can be changed in a recorded sweep; "
                              "to change others, give its --config=FILE too")  # fmt: skip
    config = ConfigDict({"evaluation": to_config_dict(evaluation)})
    _check_keys("--config", config, arguments)
    values, argv = flags.FlagValues(), ["olmo-jax", *_whole_numbers(config, arguments)]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except Exception as error:  # noqa: BLE001  absl and ml_collections raise several types of their own
        last = str(error).strip().splitlines()[-1]
        raise ConfigError(_refused_value("--config", config, error) or f"{' '.join(arguments)}: {last}") from error
    return from_config_dict(type(evaluation), config.evaluation, "config.evaluation")


def _file_name(arguments: Sequence[str]) -> str:
    from olmo_jax.config import ConfigError

    names = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    if len(names) != 1:
        raise ConfigError(f"give --config=FILE once (found {len(names)}), then its overrides as --config.key=value")
    return names[0]


def override_keys(arguments: Sequence[str]) -> list[str]:
    """Return the dotted keys that the overrides among the arguments set."""
    return [m[1] for a in arguments if (m := re.match(r"--(?:no)?config\.([^=]+)", a))]


def _check_source(name: str, file: str) -> None:
    """Raise ConfigError for a --config whose file is missing or isn't Python, naming the line."""
    from olmo_jax.config import ConfigError

    if not os.path.isfile(file):
        if os.path.isfile(name):
            raise ConfigError(
                f"--config={name}: the file's name contains a ':', which begins get_config's argument; rename the file"
            )
        what = f"{file} is a folder" if os.path.isdir(file) else f"no file {file}"
        names = ", ".join(named_configs())
        raise ConfigError(f"--config={name}: {what}; give the path of a .py file with get_config, or one of {names}")
    source = Path(file).read_bytes()
    if b"\0" in source:
        line = source[: source.index(b"\0")].count(b"\n") + 1
        raise ConfigError(f"{file}, line {line}: contains a NUL byte, so it is damaged; put it back from a copy")
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno or _undecodable_line(source)}: {error.msg}") from error
    except (MemoryError, RecursionError) as error:
        raise ConfigError(f"{file}: is nested too deeply for Python to compile; simplify it") from error


def _undecodable_line(source: bytes) -> int:
    try:
        source.decode()
    except UnicodeDecodeError as error:
        return source[: error.start].count(b"\n") + 1
    return 1


def _what_failed(file: str, error: BaseException) -> str:
    """Return the line, the type and the message of an error in the user's own file."""
    from olmo_jax.config import ConfigError

    causes = _causes(error)
    # ml_collections raises a ValueError again, with the traceback as its message; the one before it has the words.
    if own := next((c for c in causes if isinstance(c, ConfigError) and not str(c).startswith(_RAISED_AGAIN)), None):
        return f"{file}: {own}"
    path = os.path.realpath(file)
    lines = {
        frame.lineno: cause
        for cause in causes
        for frame in traceback.extract_tb(cause.__traceback__)
        if os.path.realpath(frame.filename) == path
    }
    if not lines:
        text = str(error).strip().splitlines()
        return f"{file}: {text[-1] if text else type(error).__name__}"
    line, cause = list(lines.items())[-1]
    return f"{file}, line {line}: {type(cause).__name__}: {str(cause).strip() or 'no message'}"


def _refused_value(where: str, config: Any, error: BaseException) -> str:
    """Return the message for an override that absl refused (key, value, expected type); "" for another error."""
    from ml_collections import ConfigDict

    match = re.match(r"flag --(?:no)?config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if not match or config is None:
        return ""
    old = _value(config, match[1])
    if isinstance(old, ConfigDict):
        first_key = next(iter(old), "key")
        wanted = f"is a group of settings; set them one by one, such as --config.{match[1]}.{first_key}=..."
    else:
        wanted = f"needs {_WANTED.get(type(old), type(old).__name__)}"
    return f"{where}: config.{match[1]} = {match[2]!r}: {wanted}"


def _whole_numbers(config: Any, arguments: Sequence[str]) -> list[str]:
    """Return the overrides with whole numbers such as 1e3, 2.0 or 2**20 written out."""

    def written_out(argument: str) -> str:
        match = re.fullmatch(r"(--config\.([^=]+)=)(.+)", argument)
        if not match or type(_value(config, match[2])) is not int:
            return argument
        whole = _whole(match[3].strip())
        return argument if whole is None else f"{match[1]}{whole}"

    return [written_out(argument) for argument in arguments]


def _whole(text: str) -> int | None:
    if power := re.fullmatch(r"(\d{1,3})\*\*(\d{1,2})", text):
        return int(power[1]) ** int(power[2])
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > _LONGEST_WHOLE or number != number.to_integral_value():
        return None
    return int(number)


def _value(config: Any, key: str) -> Any:
    """Return the value of a dotted key, which must exist."""
    for part in key.split("."):
        config = config[part]
    return config


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (following := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(following)
    return chain
