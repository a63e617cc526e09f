"""What the RPC server reports of itself, as Prometheus metrics.

Calls are counted in plain numbers and put into the library's form at each scrape: its own
histograms cost a call more than its authorisation.
"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from smallstack.telemetry.metrics import CALL_BUCKETS, PREFIX, Metrics

_LABELS = [*map(floatToGoString, CALL_BUCKETS), "+Inf"]


class _Calls:
    """The calls of one method that ended in one way."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(_LABELS)
        self.seconds = 0.0


class RpcMetrics:
    """An observer (`smallstack.srpc.observer.Observer`) that counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._open = metrics.gauge("rpc_connections", "Open RPC connections.")
        self._opened = metrics.counter("rpc_connections_opened", "RPC connections opened.")
        self._rejected = metrics.counter(
            "rpc_connections_rejected", "Connections turned away before any call.", ["reason"]
        )
        self._denied = metrics.counter(
            "rpc_calls_denied", "Calls refused for want of rights.", ["method"]
        )
        self._delayed = metrics.counter(
            "rpc_calls_delayed", "Calls that had to wait because their user calls too often."
        )
        self._running: dict[str, int] = {}
        self._ended: dict[tuple[str, str], _Calls] = {}
        metrics.registry.register(self)

    def connection(self, opened: bool) -> None:
        """A connection was opened or has closed."""
        if opened:
            self._open.inc()
            self._opened.inc()
        else:
            self._open.dec()

    def rejected(self, reason: str) -> None:
        """A connection was turned away."""
        self._rejected.labels(reason).inc()

    def denied(self, method: str) -> None:
        """A call was refused."""
        self._denied.labels(method).inc()

    def delayed(self) -> None:
        """A call has to wait."""
        self._delayed.inc()

    def started(self, method: str) -> None:
        """A handler began."""
        self._running[method] = self._running.get(method, 0) + 1

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        """A handler ended."""
        self._running[method] -= 1
        calls = self._ended.get((method, outcome))
        if calls is None:
            calls = self._ended[method, outcome] = _Calls()
        calls.counts[bisect_left(CALL_BUCKETS, seconds)] += 1
        calls.seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """What a scrape gets; in a thread, while calls go on."""
        running = GaugeMetricFamily(
            f"{PREFIX}_rpc_calls_running", "Calls in progress.", labels=["method"]
        )
        for method, count in list(self._running.items()):
            running.add_metric([method], count)
        yield running
        seconds = HistogramMetricFamily(
            f"{PREFIX}_rpc_call_seconds",
            "Duration of calls, by whether they went well, told an error, or failed.",
            labels=["method", "outcome"],
        )
        for labels, calls in list(self._ended.items()):
            total, buckets = 0, []
            for label, count in zip(_LABELS, calls.counts, strict=True):
                total += count
                buckets.append((label, total))
            seconds.add_metric(labels, buckets, calls.seconds)
        yield seconds
