"""Which variant of iptables the commands `iptables`, `ip6tables` and their kin are, in a root file system of our own.

Stands for `update-alternatives --set iptables ...`, which the entrypoint of kind's node image calls (select_iptables),
and for the iptables-wrappers in the images of kube-proxy and kindnetd: on a node and in these pods, plain `iptables`
shows the tables that kube-proxy writes. Debian's /usr/sbin/iptables is a link to /etc/alternatives/iptables, and that
one to a variant's program. Left out: finding out the variant from the rules that are there (it is an option of the
cluster), and the records of update-alternatives itself, in /var/lib.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from labs.cluster.runtime import root

ALTERNATIVES = Path("/etc/alternatives")
# Debian's links of the alternatives iptables and ip6tables: PROGRAM, PROGRAM-save, PROGRAM-restore.
PROGRAMS = ("iptables", "ip6tables")
SUFFIXES = ("", "-save", "-restore")


def select_iptables(variant: str) -> None:
    """Have `iptables` and its kin be those of `variant`; "default" leaves them to the machine.

    For the first process of a container, which has a root of its own. Where they are not chosen by alternatives, or the
    variant is not installed, they stay what they are.
    """
    if variant == "default":
        return
    for program in PROGRAMS:
        for suffix in SUFFIXES:
            link, chosen = ALTERNATIVES / f"{program}{suffix}", shutil.which(f"{program}-{variant}{suffix}")
            if link.is_symlink() and chosen is not None:
                root.own(ALTERNATIVES)
                link.unlink()
                link.symlink_to(chosen)
