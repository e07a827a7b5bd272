"""The argument of a study's configuration: a scale, then `seeds=K`."""

from collections.abc import Iterable

from olmo_jax.config import ConfigError


def scale_and_seeds(argument: str, file: str, scales: Iterable[str], least: int) -> tuple[str, int | None]:
    """Return the scale and the number of seeds that "SCALE[,seeds=K]" names; None without the latter.

    Raises ConfigError, which names the file, for an unknown scale or option, and for fewer than `least` seeds.
    """
    name, *options = argument.split(",")
    if name not in scales:
        raise ConfigError(f"{file} has no scale '{name}'; choose {', '.join(scales)}")
    count = None
    for option in options:
        key, _, value = option.partition("=")
        if key != "seeds" or not value.isdigit() or int(value) < least:
            raise ConfigError(f"{file} has no option '{option}'; use seeds=K, with K of {least} or more")
        count = int(value)
    return name, count
