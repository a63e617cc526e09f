"""What the RPC server reports of itself, as Prometheus metrics."""

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
        self._running.labels(method).inc()

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        """A handler ended."""
        self._running.labels(method).dec()
        self._seconds.labels(method, outcome).observe(seconds)
