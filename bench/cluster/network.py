"""Hosts on one machine: a network namespace each, all on one switch, with links of a chosen rate.

Everything lives in the network and mount namespaces of the process that builds it (``unshare -n -m``) and goes with
them. Namespaces are named, so that every process below can shape links and read counters.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass

from dmt_kernels.spec import InputError

SWITCH = "switch"
INTERFACE = "eth0"  # of every host
BURST = "32kb"  # what may pass at once beyond the rate: more, and a whole message slips through
QUEUE = "200ms"  # that a link holds before it drops
MTU = 1500
SEGMENT = 16_000  # bytes of packets that pass a shaper together: larger ones than a burst it has to take apart
HEADERS = 14 + 20 + 32  # bytes around the payload of a packet: Ethernet, IP, TCP with time stamps
PACKET_BYTES = MTU + 14
PACKET_PAYLOAD = PACKET_BYTES - HEADERS
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def obstacle() -> str | None:
    """Why hosts cannot be emulated here, with what to do about it; None if they can."""
    missing = [tool for tool in ("unshare", "ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"bench-cluster: {missing[0]} is not on the PATH; emulated hosts need iproute2 and util-linux"
    if os.geteuid():
        return "bench-cluster: emulated hosts need root, for network namespaces"
    # A link, a namespace and a shaper: whatever a container or a kernel denies shows here.
    trial = (
        "mount -t tmpfs none /run",
        "ip netns add trial",
        "ip link add trial0 type veth peer name trial1 netns trial",
        "tc qdisc add dev trial0 root tbf rate 1gbit burst 32kb latency 50ms",
    )
    command = ["unshare", "-n", "-m", "sh", "-c", " && ".join(trial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"bench-cluster: this system lets nobody emulate hosts: {' '.join(done.stderr.split())}"
    return None


@dataclass(frozen=True)
class Network:
    """The hosts ``host0``, ``host1``, ... and the switch between them."""

    hosts: int

    def name(self, host: int) -> str:
        return f"host{host}"

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def build(self, *, shapes_inner: bool) -> None:
        """Make namespaces and links, in namespaces of this process's own.

        `shapes_inner`: whether loopbacks will be shaped. Packets of their own size would not fit through a shaper.
        """
        _run("mount", "-t", "tmpfs", "none", "/run")
        _run("ip", "netns", "add", SWITCH)
        _run("ip", "-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", SWITCH, "link", "set", "bridge", "up")
        for host in range(self.hosts):
            name = self.name(host)
            _run("ip", "netns", "add", name)
            _run(*f"ip -n {SWITCH} link add {name} mtu {MTU} type veth peer name {INTERFACE} netns {name}".split())
            _run(*f"ip -n {SWITCH} link set {name} master bridge gso_max_size {SEGMENT} up".split())
            _run(*f"ip -n {name} addr add {self.address(host)}/24 dev {INTERFACE}".split())
            _run(*f"ip -n {name} link set lo up".split())
            for device in (INTERFACE, *(["lo"] if shapes_inner else [])):
                _run(*f"ip -n {name} link set {device} mtu {MTU} gso_max_size {SEGMENT} up".split())
            # What every kernel has and nobody paces, and connections that stay warm between steps.
            for setting in ("tcp_congestion_control=reno", "tcp_slow_start_after_idle=0"):
                key, _, value = setting.partition("=")
                _run("ip", "netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}")

    def shape(self, rate: float | None, tower_rate: float | None = None) -> None:
        """Give every host's link `rate` bits per second each way, and the loopback that its ranks share `tower_rate`.

        None is as fast as the machine can do.
        """
        for host in range(self.hosts):
            name = self.name(host)
            for namespace, device, bits in (
                (name, INTERFACE, rate),
                (SWITCH, name, rate),
                (name, "lo", tower_rate),
            ):
                qdisc = ["tc", "-n", namespace, "qdisc"]
                if bits is None:
                    subprocess.run([*qdisc, "del", "dev", device, "root"], capture_output=True)  # none may be there
                else:
                    limits = f"rate {bits:.0f}bit burst {BURST} latency {QUEUE}"
                    _run(*qdisc, *f"replace dev {device} root tbf {limits}".split())

    def cut(self, host: int) -> None:
        """Pull the host's cable out of the switch."""
        _run(*f"ip -n {SWITCH} link set {self.name(host)} down".split())

    def sent_bytes(self) -> list[int]:
        """Bytes that every host has put on its link, headers included, since the link was shaped.

        The counter is the shaper's: unlike the interface's own it counts the headers of every packet of a large send.
        """
        sent = []
        for host in range(self.hosts):
            shown = _run("tc", "-n", self.name(host), "-s", "-j", "qdisc", "show", "dev", INTERFACE)
            sent.append(next(int(qdisc["bytes"]) for qdisc in json.loads(shown) if qdisc["kind"] == "tbf"))
        return sent


def parse_rate(text: str, base: float | None = None) -> float:
    """Bits per second of ``200mbit`` or, with a `base`, of ``9x``.

    Raises
    ------
    InputError
        For anything else.
    """
    try:
        if base is not None and text.endswith("x"):
            rate = float(text[:-1]) * base
        else:
            rate = float(text[:-4]) * UNITS[text[-4:]]
        if 1e6 <= rate < 1e12:
            return rate
    except (ValueError, KeyError):
        pass
    raise InputError(f"{text!r} is no rate of at least 1mbit; write 200mbit, 1gbit or, for TOWER_RATE, 9x")


def show_rate(rate: float | None) -> str:
    if rate is None:
        return "unshaped"
    return f"{rate / 1e9:g} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:g} Mbit/s"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout
