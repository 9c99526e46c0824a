"""What Prometheus is told: of all processes together, and neither users nor experiments by name."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters of this process, in files that all processes of a gateway share.

    ``PROMETHEUS_MULTIPROC_DIR`` must be set before this module is imported: it is how the library knows.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._answers = Counter(
            "lcls_gateway_answers", "Answers by what was asked for", ["kind", "status"], registry=registry
        )
        self._bytes = Counter("lcls_gateway_sent_bytes", "Bytes of bodies sent", registry=registry)
        self._seconds = Histogram(
            "lcls_gateway_answer_seconds",
            "From a request to the end of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "lcls_gateway_refused_connections", "Connections closed before or between requests", registry=registry
        )
        self._connections = Gauge(
            "lcls_gateway_connections", "Connections now", multiprocess_mode="livesum", registry=registry
        )
        self._by_label: dict[tuple[str, int], Counter] = {}

    def answered(self, kind: str, status: int, size: int, seconds: float) -> None:
        """Count an answer that was sent."""
        counter = self._by_label.get((kind, status))
        if counter is None:
            counter = self._by_label[kind, status] = self._answers.labels(kind, str(status))
        counter.inc()
        self._bytes.inc(size)
        self._seconds.observe(seconds)

    def refused(self) -> None:
        """Count a connection that was closed before or between requests."""
        self._refused.inc()

    def connections(self, count: int) -> None:
        """Say how many connections there are."""
        self._connections.set(count)


def exposition() -> bytes:
    """All processes' counters, in Prometheus's text format."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
