"""Counts of the server in Prometheus' text form."""

import collections
import threading


class Metrics:
    """Requests by status, and the time they took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: collections.Counter[int] = collections.Counter()
        self._seconds = 0.0

    def answered(self, status: int, seconds: float) -> None:
        with self._lock:
            self._requests[status] += 1
            self._seconds += seconds

    def statuses(self) -> str:
        """Answers by status, as "200: 7, 503: 1"."""
        with self._lock:
            return ", ".join(f"{status}: {n}" for status, n in sorted(self._requests.items()))

    def text(self, *, waiting: int, queued: int, batches: int, rows: int) -> str:
        """All counts; the arguments are the batcher's."""
        with self._lock:
            requests, seconds = dict(self._requests), self._seconds
        lines = [
            "# HELP unime_jax_requests_total Embedding requests by status.",
            "# TYPE unime_jax_requests_total counter",
            *(
                f'unime_jax_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(requests.items())
            ),
            "# HELP unime_jax_request_seconds Time from request to answer.",
            "# TYPE unime_jax_request_seconds summary",
            f"unime_jax_request_seconds_sum {seconds:.6f}",
            f"unime_jax_request_seconds_count {sum(requests.values())}",
            "# HELP unime_jax_batches_total Batches that were encoded.",
            "# TYPE unime_jax_batches_total counter",
            f"unime_jax_batches_total {batches}",
            "# HELP unime_jax_items_total Items that were encoded.",
            "# TYPE unime_jax_items_total counter",
            f"unime_jax_items_total {rows}",
            "# HELP unime_jax_items_waiting Items that are accepted and not answered.",
            "# TYPE unime_jax_items_waiting gauge",
            f"unime_jax_items_waiting {waiting}",
            "# HELP unime_jax_items_queued Items of them that are prepared, and in no batch yet.",
            "# TYPE unime_jax_items_queued gauge",
            f"unime_jax_items_queued {queued}",
        ]
        return "\n".join(lines) + "\n"
