"""The agent's status page and metrics: what runs here, and how much is left."""

from functools import partial

from aiohttp import web

from smallstack.daemon.pages import Pages, document, paragraph, table
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.filters import version_sorted
from smallstack.hypervisor.host import MIB, format_bytes
from smallstack.proto.enums import State
from smallstack.telemetry.metrics import Metrics


def add_pages(pages: Pages, agent: Agent) -> None:
    """``/``: the machine, its VMs, subnets and volume directories."""

    async def status(_: web.Request) -> web.Response:
        return document("SmallStack Hypervisor", *_status(agent))

    pages.add("/", status)


def add_metrics(metrics: Metrics, agent: Agent) -> None:
    """Gauges, read at each scrape."""
    ledger, cache = agent.parts.ledger, agent.parts.cache
    vms = metrics.gauge("vms", "VMs by state.", ["state"])
    for state in State:
        vms.labels(state.text).set_function(partial(_count, agent, state))
    metrics.gauge(
        "memory_unallocated_bytes",
        "Memory that no VM has.",
        read=lambda: float(ledger.memory_left * MIB),
    )
    metrics.gauge(
        "memory_available_bytes",
        "Memory that could be given to processes now.",
        read=lambda: float(ledger.host.available_mib() * MIB),
    )
    metrics.gauge(
        "milli_cpus_unallocated",
        "Thousandths of a processor that no VM has.",
        read=lambda: float(ledger.milli_cpus_left),
    )
    metrics.gauge(
        "addresses_free",
        "Addresses for new VMs.",
        read=lambda: float(len(agent.parts.book.pool.free)),
    )
    metrics.gauge(
        "object_cache_bytes", "Bytes of cached objects.", read=lambda: float(cache.used_bytes)
    )
    metrics.gauge("creates", "VMs created.", read=lambda: float(agent.creates["created"]))
    metrics.gauge(
        "creates_failed", "Creates that failed.", read=lambda: float(agent.creates["failed"])
    )


def _count(agent: Agent, state: State) -> float:
    return float(sum(vm.state is state for vm in agent.vms.values()))


def _status(agent: Agent) -> list[str]:
    parts = agent.parts
    ledger, verdict = parts.ledger, parts.emulator.verdict
    facts = (
        f"{len(agent.vms)} VMs. {ledger.milli_cpus_left} of {ledger.host.milli_cpus} milliCPUs, "
        f"{ledger.memory_left} of {ledger.host.memory_mib} MiB of memory unallocated, "
        f"{ledger.host.available_mib()} MiB available."
    )
    state = "disabled: no creates, no starts" if parts.store.disabled else "enabled"
    how = f"Accelerator {verdict.accelerator}: {verdict.reason}. This agent is {state}."
    return [
        paragraph(facts),
        paragraph(how),
        "<h2>VMs</h2>",
        table(
            ("IP", "hostname", "state", "MiB", "milliCPUs", "image", "owner"),
            (
                (
                    ip,
                    info.hostname,
                    info.state.text,
                    info.memory_in_mib,
                    info.milli_cpus,
                    info.image_name,
                    info.owner_users[0] if info.owner_users else "",
                )
                for ip in version_sorted(agent.vms)
                for info in [agent.vms[ip].info]
            ),
        ),
        "<h2>Subnets</h2>",
        table(
            ("id", "gateway", "mask", "VLAN", "free addresses"),
            (
                (s.id, s.ip_gateway, s.ip_mask, s.vlan_id, counts.get(s.id, 0))
                for counts in [parts.book.pool.free_counts(parts.book.subnets)]
                for s in parts.book.list_subnets()
            ),
        ),
        "<h2>Volume directories</h2>",
        table(
            ("directory", "still usable"),
            ((d, format_bytes(ledger.usable(d))) for d in ledger.directories),
        ),
        paragraph(
            f"Object cache: {len(parts.cache)} objects, {format_bytes(parts.cache.used_bytes)} "
            f"of {format_bytes(parts.cache.quota_bytes)}."
        ),
    ]
