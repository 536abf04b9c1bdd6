"""Lessons for tests: directories as an author would write them, made in a temporary place.

What belongs here: a small correct lesson, and changing it. What does not: assertions.
"""

from __future__ import annotations

from pathlib import Path

LAB = """
id = "web"
title = "A web server"
summary = "One Service."
order = 1
minutes = 5
concepts = ["service"]

[[steps]]
id = "guess"
title = "Guess"
kind = "predict"
[steps.predict]
choices = { a = "One pod", b = "All pods" }
right = "b"
because = "There are three."
told = "find"

[[steps]]
id = "look"
title = "Look"
kind = "read"

[[steps]]
id = "find"
title = "Find its address"
kind = "answer"
hints = ["It is in the API.", "kubectl shows it.", "In the column CLUSTER-IP."]
answer = { fact = "object", form = "an IP address", kind = "service", name = "web", path = "$.spec.clusterIP" }

[[steps]]
id = "open"
title = "Open it"
kind = "change"
within = 0
hints = ["Types.", "NodePort.", "kubectl edit."]
[[steps.checks]]
check = "service"
name = "web"
type = "NodePort"
"""

README = """# A web server

There is one Service here, and in this lesson you find it, look at it, and open it to the world outside of the cluster.

## Guess

Who answers?

## Look

Look at it:

```console
$ echo one two
one …
```

## Find its address

Where is it?

## Open it

Open it.

## Debrief

You have seen where the address of a Service is kept, and what it takes to have it opened to everybody outside of it.
"""

SOLUTION = """#!/bin/bash
step_find() {
    k8snet-lab answer --later "$(kubectl get service web -o jsonpath='{.spec.clusterIP}')"
}

step_open() {
    kubectl patch service web -p '{"spec":{"type":"NodePort"}}'
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve web
"""

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.77
  ports: [{port: 80}]
"""

WRONG = "#!/bin/bash\n# step: open\n# fails: type\nkubectl label service web type=NodePort\n"


def write(
    directory: Path,
    *,
    lab: str = LAB,
    readme: str = README,
    solution: str = SOLUTION,
    wrong: str = WRONG,
    manifest: str | None = None,
) -> Path:
    """Write a lesson into a directory, which is made. `manifest`: of the start; MANIFEST has what LAB is about."""
    (directory / "wrong").mkdir(parents=True)
    if manifest is not None:
        (directory / "manifests").mkdir()
        (directory / "manifests" / "start.yaml").write_text(manifest)
    (directory / "lab.toml").write_text(lab)
    (directory / "README.md").write_text(readme)
    for path, text in ((directory / "solution.sh", solution), (directory / "wrong" / "label.sh", wrong)):
        path.write_text(text)
        path.chmod(0o755)
    return directory
