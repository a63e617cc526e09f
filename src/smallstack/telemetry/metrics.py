"""Prometheus metrics, for daemons only (importing this costs a client 40 ms).

Names get the prefix ``smallstack_``; units are base units and stand in the name: ``_seconds``,
``_bytes``, ``_total`` (which prometheus-client appends to counters by itself). Each daemon has one
`Metrics`; there is no global registry, so two daemons in one process (tests) do not collide.
"""

from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

PREFIX: Final = "smallstack"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
CALL_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0)
"""Seconds: an RPC takes between a millisecond and the time of a boot."""


class Metrics:
    """One daemon's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def counter(self, name: str, help_: str, labels: Sequence[str] = ()) -> Counter:
        """What only grows; shown as ``smallstack_<name>_total``."""
        return Counter(name, help_, labels, namespace=PREFIX, registry=self.registry)

    def gauge(
        self,
        name: str,
        help_: str,
        labels: Sequence[str] = (),
        read: Callable[[], float] | None = None,
    ) -> Gauge:
        """What goes up and down; with ``read`` it is asked for its value at each scrape."""
        gauge = Gauge(name, help_, labels, namespace=PREFIX, registry=self.registry)
        if read is not None:
            gauge.set_function(read)
        return gauge

    def histogram(
        self,
        name: str,
        help_: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = CALL_BUCKETS,
    ) -> Histogram:
        """How values are spread."""
        return Histogram(
            name, help_, labels, namespace=PREFIX, registry=self.registry, buckets=buckets
        )

    def render(self) -> bytes:
        """The text that a scrape gets; takes some milliseconds."""
        return generate_latest(self.registry)
