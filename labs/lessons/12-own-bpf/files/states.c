// What is reported: k8snet-trace load prints these fields.
struct connect {
    u32 pid;
    char comm[16];
};
BPF_RINGBUF_OUTPUT(connects, 8);

// Called whenever a TCP socket of this machine goes from one state to another.
TRACEPOINT_PROBE(sock, inet_sock_set_state)
{
    struct connect it = {};

    // TO DO: return 0 here unless a connection is being made

    it.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&it.comm, sizeof(it.comm));
    connects.ringbuf_output(&it, sizeof(it), 0);
    return 0;
}
