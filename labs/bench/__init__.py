"""Measuring the Service datapaths side by side on the learner's own machine: `k8snet-lab bench`.

What belongs here: namespaces of the measurement's own, loading many Services into one datapath through the code of the
cluster's proxies, timing, and telling it as table, CSV, JSON and plots. What does not: any datapath itself
(`labs.cluster`), and what the project measures about itself for docs/performance.md (`tests/bench`).

    scale.py      what is measured, in which order            objects.py   many Services, and where their addresses lie
    worker.py     one datapath in an enclosure of its own     datapaths.py loads and changes them as the proxies do
    enclosure.py  namespaces and cgroups that go with it      wiring.py    a node, a client pod, a pod that answers
    flows.py      time of a new flow                          rates.py     connections and requests per second
    results.py    medians, and the targets                    resume.py    what an interrupted run has measured
    report.py     table, CSV, JSON                            plots.py     one page of plots
    machine.py    what it was measured on
"""
