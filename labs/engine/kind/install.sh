#!/bin/sh
# Runs in a node's container, as root: installs k8snet-trace from the source in /opt/k8snet/source, and what lessons run
# on nodes. The node is Debian, with no kernel headers, which are not needed.
set -eu
export DEBIAN_FRONTEND=noninteractive
ROOT=/opt/k8snet
if ! command -v apt-get >/dev/null; then
    echo "error: this node's image is not Debian" >&2
    exit 3
fi
apt-get -q update
apt-get -q install -y --no-install-recommends \
    python3 python3-venv python3-dev gcc libc6-dev python3-bpfcc \
    iproute2 iptables nftables conntrack bpftool kmod curl tcpdump bind9-dnsutils
python3 -m venv --clear --system-site-packages $ROOT/venv
$ROOT/venv/bin/pip install -q --disable-pip-version-check $ROOT/source
# Docker mounts no tracefs into containers, and what is mounted here goes when the node stops: each start looks.
cat >/usr/local/bin/k8snet-trace <<END
#!/bin/sh
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true
exec $ROOT/venv/bin/k8snet-trace "\$@"
END
chmod 755 /usr/local/bin/k8snet-trace
k8snet-trace --version
