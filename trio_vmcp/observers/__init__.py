"""Ready-made observers, built on `trio_vmcp.observe` and nothing else. Each needs its extra:

- `trio_vmcp.observers.prometheus`: `PrometheusObserver` (extra `prometheus`);
- `trio_vmcp.observers.opentelemetry`: `OpenTelemetryObserver` (extra `otel`).
"""

__all__: list[str] = []
