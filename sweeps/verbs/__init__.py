"""The verbs of the command line, one per file."""

from sweeps.verbs import (
    atlas,
    audit,
    claims,
    compare,
    completion,
    config,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    geometry,
    import_model,
    judge,
    launch,
    new,
    plan,
    prepare,
    report,
    run,
    serve,
    status,
    train,
)

# Grouped by purpose, in the order in which --help lists them.
GROUPS = {
    "getting started": (demo.VERB, new.VERB, doctor.VERB, config.VERB, completion.VERB),
    "sweeps": (
        *(plan.VERB, run.VERB, status.VERB, evaluate.VERB, report.VERB, compare.VERB, judge.VERB, claims.VERB),
        *(launch.VERB, serve.VERB, prepare.VERB, train.VERB),
    ),
    "models": (import_model.VERB, audit.VERB, atlas.VERB, export.VERB, generate.VERB, geometry.VERB),
}
VERBS = {verb.name: verb for group in GROUPS.values() for verb in group}
