#!/bin/bash
# What a guest of scripts/vmtest does once it has booted: makes itself look like a node, runs pytest, writes down the result.
#   inside.sh PROJECT [PYTEST ARGUMENT...]
# The project's directory and /usr are taken from the cached share /run/k8snet-root, mounted by guest.py.
set -u
project=$1
shift

# The modules that a node has loaded, or loads when kube-proxy starts. A name that a kernel does not know is built in, or gone.
MODULES=(
    nf_conntrack nf_conntrack_netlink nf_nat ip_tables ip6_tables iptable_nat iptable_filter iptable_mangle ip6table_nat
    ip6table_filter ip6table_mangle nf_tables nft_compat nft_chain_nat nft_nat nft_masq nft_ct nft_redir nft_numgen nft_reject_inet
    xt_nat xt_MASQUERADE xt_REDIRECT xt_mark xt_comment xt_conntrack xt_statistic xt_recent xt_addrtype xt_multiport xt_tcpudp
    ipt_REJECT ip6t_REJECT veth bridge br_netfilter dummy vxlan tun sch_ingress sch_netem cls_bpf
)
mkdir -p /run/k8snet-usr/{upper,work} /run/k8snet-results "$project"
mount -t overlay -o lowerdir=/run/k8snet-root/usr,upperdir=/run/k8snet-usr/upper,workdir=/run/k8snet-usr/work none /usr
mkdir -p /usr/lib/modules && mount --bind "$K8SNET_MODULES" /usr/lib/modules
mount --bind "/run/k8snet-root$project" "$project"
mount -t 9p -o rw,trans=virtio,version=9p2000.L,cache=none k8snet-results /run/k8snet-results
for module in "${MODULES[@]}"; do modprobe -q "$module" || echo "guest: no module $module"; done

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

cd "$project" || exit 1
export PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis HOME=/tmp TMPDIR=/tmp PATH=$project/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
.venv/bin/python -m pytest -v --color=no -p no:cacheprovider --junitxml=/run/k8snet-results/junit.xml "$@"
echo $? >/run/k8snet-results/exit-code
sync
