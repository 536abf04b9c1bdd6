"""The guided lessons' engine: what a lesson is, how it is walked through, how a machine sees whether a step is done.

    lesson (data) ─▶ session (a cluster, entered step by step) ─▶ check (reads the world) ─▶ outcome ─▶ progress

    spec, prose     a lesson's directory, read
    course          all lessons: order, needs, concepts
    world           the cluster that a lesson runs on, as checks see it: in miniature, or kind
    checks/, facts  what can be looked at, by name
    faults          what can be broken, by name
    progress        what a learner has done, kept
    session         start, check, hint, solve, reset, stop
    tell            how all this is told
    lint, rehearse  whether a lesson keeps its promises: on paper, and on a cluster

What may not live here: lessons (`labs/lessons`, data only), the cluster (`labs.cluster`), and printing (`labs.cli`).
"""
