struct connect {
    u32 pid;
    char comm[16];
    // TO DO: u8 address[4], and u16 port
};
BPF_RINGBUF_OUTPUT(connects, 8);

TRACEPOINT_PROBE(sock, inet_sock_set_state)
{
    struct connect it = {};

    if (args->newstate != 2)  // TCP_SYN_SENT
        return 0;
    it.pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&it.comm, sizeof(it.comm));
    // TO DO: where the connection is to
    connects.ringbuf_output(&it, sizeof(it), 0);
    return 0;
}
