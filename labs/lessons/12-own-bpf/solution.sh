#!/bin/bash
# Solves the lesson: run as it is, all of it; `k8snet-lab solve --step` runs the function of one step.

step_begin() {
    sed -i 's|// TO DO: return 0 here.*|if (args->newstate != 2)  // TCP_SYN_SENT\n        return 0;|' states.c
}

step_where() {
    sed -i -e 's|// TO DO: u8 address.*|u8 address[4];\n    u16 port;|' \
        -e 's|// TO DO: where the.*|__builtin_memcpy(it.address, args->daddr, 4);\n    it.port = args->dport;|' where.c
}

step_service() {
    k8snet-lab answer --later "$(kubectl -n fastapi get service lets-ship-it -o jsonpath='{.spec.clusterIP}')"
}

step_verifier() {
    sed -i -e 's|seen.lookup(&address)|seen.lookup_or_try_init(\&address, \&none)|' \
        -e 's|    \*times += 1;|    if (!times)\n        return 0;\n    *times += 1;|' counts.c
}

[ "${BASH_SOURCE[0]}" != "$0" ] || exec k8snet-lab solve own-bpf
