"""olmo-jax doctor"""

import json

from sweeps.verbs.verb import DONE, FAILED, Command, Verb, json_argument


def _carry_out(command: Command) -> int:
    from sweeps.starting import doctor

    checks = doctor.examine()
    if command.arguments.json:
        print(json.dumps([check._asdict() for check in checks]))
    else:
        print("\n".join(doctor.lines(checks)))
    return FAILED if any(check.state == doctor.PROBLEM for check in checks) else DONE


VERB = Verb(
    "doctor",
    "check this machine: versions, devices, speed, caches, optional parts",
    "olmo-jax doctor",
    _carry_out,
    json_argument,
)
