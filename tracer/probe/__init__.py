"""Crafted packets, each a new flow, and where each of them really went.

What belongs here: making, sending and following packets, and comparing with what the rules predict. What does not: the
command (`tracer.commands.probe`), and reading rules (`tracer.rules`).

    origin       --from: the network namespace that packets leave from
    neighbours   which namespaces are at the other ends of its links: a pod's node
    prediction   the node's rules: what DST means, and the shares that its backends should get
    ports        source ports that nobody uses
    packets      the packets themselves, by scapy
    wire         raw sockets: out with the packets, in with the answers
    tracking     conntrack in every namespace of the machine: who translated, and to what
    flows        one flow, and what became of it
    run          all flows, at a bounded rate
    conduct      a whole probe, from what the user said to a report
    chisquare    observed beside expected
    report       what came of a probe: counts, notes, JSON
    table        the same for people
    questions, question_table   the same for DNS queries
"""
