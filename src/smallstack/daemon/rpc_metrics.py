"""What the RPC server reports of itself, as Prometheus metrics."""

from prometheus_client import Gauge, Histogram

from smallstack.telemetry.metrics import Metrics


class RpcMetrics:
    """An observer (`smallstack.srpc.server.Observer`) that counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._open = metrics.gauge("rpc_connections", "Open RPC connections.")
        self._opened = metrics.counter("rpc_connections_opened", "RPC connections opened.")
        self._rejected = metrics.counter(
            "rpc_connections_rejected", "Connections turned away before any call.", ["reason"]
        )
        self._denied = metrics.counter(
            "rpc_calls_denied", "Calls refused for want of rights.", ["method"]
        )
        self._running = metrics.gauge("rpc_calls_running", "Calls in progress.", ["method"])
        self._seconds = metrics.histogram(
            "rpc_call_seconds",
            "Duration of calls, by whether they went well, told an error, or failed.",
            ["method", "outcome"],
        )
        # Looking a label up in prometheus-client costs as much as the rest of a call's framing.
        self._running_of: dict[str, Gauge] = {}
        self._seconds_of: dict[tuple[str, str], Histogram] = {}

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

    def started(self, method: str) -> None:
        """A handler began."""
        running = self._running_of.get(method)
        if running is None:
            running = self._running_of[method] = self._running.labels(method)
        running.inc()

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        """A handler ended."""
        self._running_of[method].dec()
        spread = self._seconds_of.get((method, outcome))
        if spread is None:
            spread = self._seconds.labels(method, outcome)
            self._seconds_of[method, outcome] = spread
        spread.observe(seconds)
