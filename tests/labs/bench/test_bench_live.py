"""`k8snet-lab bench scale` on this machine: what it measures is there, and nothing is left of it, however it ends."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import pytest

from labs.bench import enclosure
from labs.cluster.ledger import CGROUP_ROOTS
from tests.labs.lab import descendants, lab, start_time
from tests.labs.machine import REPOSITORY

pytestmark = pytest.mark.root

CGROUPS = (*CGROUP_ROOTS, Path("/sys/fs/cgroup/memory"))
# With 10 Services, each of 3 endpoints. Of eBPF: an address, 3 slots and 3 members each. Of iptables: 11 rules each,
# and 23 that all share. Of nftables: 8 rules and 2 elements each, and 23.
ENTRIES = {"iptables-legacy": 133, "iptables-nft": 133, "nftables": 123, "ebpf": 70}


def cgroups() -> set[Path]:
    return {path for root in CGROUPS for path in root.glob(f"{enclosure.PREFIX}*")}


def ours(before: set[Path]) -> set[Path]:
    """The cgroups that have come since; others may measure, too."""
    return cgroups() - before


@pytest.mark.slow
@pytest.mark.bpf
def test_every_datapath_is_measured_and_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    before = cgroups()
    arguments = ("bench", "scale", "--quick", "--max", "10", "--output", str(tmp_path))
    document: dict[str, Any] = json.loads(lab(*arguments, "-o", "json", timeout=300).stdout)
    assert [one["datapath"] for one in document["results"]] == list(ENTRIES)
    assert {one["datapath"]: one["rules"] for one in document["results"]} == ENTRIES
    assert document["machine"]["kernel"] == os.uname().release
    for one in document["results"]:
        assert one["services"] == 10
        new, by_target = one["new_flow_us"], one["new_flow_us_by_target"]
        assert 1 < new["p50"] <= new["p90"] <= new["p99"]
        assert set(by_target) == {"first", "middle", "last", "direct"}
        assert one["short_connections_per_s"] > 10 and one["keepalive_requests_per_s"] > 10
        assert one["full_sync_s"] > 0 and one["endpoint_update_ms"] > 0
        assert one["memory_mb"] is None or 0 <= one["memory_mb"] < 200
    by_name = {one["datapath"]: one for one in document["results"]}
    assert by_name["ebpf"]["endpoint_update_ms"] < by_name["nftables"]["endpoint_update_ms"]
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert len(list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))) == 4
    assert (tmp_path / "scale.png").exists() and (tmp_path / "scale.svg").exists()
    journal = (tmp_path / "rounds.jsonl").read_text()
    again = lab(*arguments, timeout=300).stdout
    assert (tmp_path / "rounds.jsonl").read_text() == journal
    assert "iptables-legacy" in again and "one endpoint's change in effect within 2 ms" in again
    assert not ours(before)


def run_worker(body: str) -> list[Any]:
    """Run the body of a worker, `b(cgroups)`, in an enclosure; gives what it prints as JSON lines."""
    program = f"""
import json
from labs.bench import datapaths, enclosure, flows, objects, wiring
from tracer.errors import K8snetError
def say(what): print(json.dumps(what), flush=True)
def b(cgroups):
{body}
raise SystemExit(enclosure.run(b))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_services_are_in_the_rules_in_the_order_that_targets_are_named_by() -> None:
    (lines,) = run_worker("""
    import subprocess
    datapath = datapaths.prepare("iptables-legacy", 12, None)
    wires = wiring.Wiring("legacy")
    datapath.load()
    saved = subprocess.run(["iptables-legacy-save", "-t", "nat"], capture_output=True, text=True).stdout
    vips = [objects.vip(number) + "/32" for number in range(12)]
    lines = [line for line in saved.splitlines() if line.startswith("-A KUBE-SERVICES") and "/32" in line]
    say([vips.index(line.split(" -d ")[1].split()[0]) for line in lines])
    """)
    assert lines == list(range(12))


@pytest.mark.parametrize("datapath", [pytest.param("ebpf", marks=pytest.mark.bpf), "nftables"])
def test_a_change_is_in_effect_and_would_be_missed_if_it_were_not(datapath: str) -> None:
    found = run_worker(f"""
    datapath = datapaths.prepare({datapath!r}, 5, cgroups.sockets)
    wires = wiring.Wiring("nft")
    datapath.load()
    flows.check(wires, objects.vip(3), objects.endpoints(3))
    datapath.replace_endpoint(3, 1)
    flows.check(wires, objects.vip(3), objects.endpoints(3, 1))
    flows.check(wires, objects.vip(4), objects.endpoints(4))
    for number, change in ((3, 0), (3, 2), (4, 1)):
        try:
            flows.check(wires, objects.vip(number), objects.endpoints(number, change))
            say("not seen")
        except K8snetError as error:
            say(str(error))
    """)
    assert [line.split(" reached ")[0] for line in found] == [f"connections to 10.96.1.{n}" for n in (3, 3, 4)]


def test_new_flows_are_measured_to_each_target_as_often_as_asked_and_none_is_left_open() -> None:
    counts, states = run_worker("""
    from pathlib import Path
    datapath = datapaths.prepare("nftables", 4, None)
    wires = wiring.Wiring("nft")
    datapath.load()
    times = flows.measure(wires, {"a": objects.vip(0), "b": objects.endpoints(0)[0]}, 700, 5)
    say({name: [len(found), min(found) > 0] for name, found in times.items()})
    with wires.client():
        say(len(Path("/proc/net/tcp").read_text().splitlines()) - 1)
    """)
    assert counts == {"a": [700, True], "b": [700, True]}
    assert states == 0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A measurement that takes half a minute."""
    arguments = ["bench", "scale", "--max", "10", "--datapath", "ebpf", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "labs.cli", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.bpf
@pytest.mark.parametrize("victim", ["command", "keeper", "worker"])
def test_nothing_is_left_when_one_of_its_processes_is_killed(
    running: subprocess.Popen[bytes], victim: str, tmp_path: Path, patience: float
) -> None:
    journal = tmp_path / "rounds.jsonl"
    assert wait(lambda: journal.exists() and len(journal.read_text().splitlines()) > 4, 30 * patience)
    mine = {pid: start_time(pid) for pid in descendants(running.pid)}
    held = held_by(mine)
    assert held
    keeper = next(pid for pid in mine if pid != running.pid and parent(pid) == running.pid)
    worker = next(pid for pid in mine if parent(pid) == keeper)
    os.kill({"command": running.pid, "keeper": keeper, "worker": worker}[victim], signal.SIGKILL)
    running.wait(30 * patience)
    assert running.returncode == (-signal.SIGKILL if victim == "command" else 1)
    assert wait(lambda: not any(start_time(pid) == started for pid, started in mine.items()), 20 * patience)
    assert wait(lambda: not any(path.exists() for path in held), 20 * patience)


def held_by(processes: Container[int]) -> set[Path]:
    """The cgroups that some of these are in."""
    return {
        path for path in cgroups() if any(int(pid) in processes for pid in (path / "cgroup.procs").read_text().split())
    }


def parent(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[1])


@pytest.mark.bpf
def test_ctrl_c_leaves_nothing_and_says_how_it_goes_on(
    running: subprocess.Popen[bytes], tmp_path: Path, patience: float
) -> None:
    journal = tmp_path / "rounds.jsonl"
    assert wait(lambda: journal.exists() and len(journal.read_text().splitlines()) > 4, 30 * patience)
    mine = {pid: start_time(pid) for pid in descendants(running.pid)}
    held = held_by(mine)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30 * patience)
    assert running.returncode == 130
    assert said.decode().strip() == f"interrupted; the same command goes on with what is in {tmp_path}"
    assert held and not any(path.exists() for path in held)
    assert not any(start_time(pid) == started for pid, started in mine.items())


def test_what_two_that_were_killed_at_once_left_is_swept_by_the_next(tmp_path: Path) -> None:
    root = next(root for root in CGROUP_ROOTS if (root / "cgroup.controllers").exists())
    left = root / f"{enclosure.PREFIX}test{os.getpid()}"
    left.mkdir()
    enclosure.sweep()
    assert not left.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--datapath", "ipvs"), 2, "'ipvs' is not one of 'iptables-legacy', 'iptables-nft', 'nftables', 'ebpf'"),
        (("--max", "4"), 2, "from 5 to 65,000 Services can be measured"),
        (("--max", "many"), 2, "not a valid integer"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], code: int, says: str) -> None:
    done = lab("bench", "scale", *arguments, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
