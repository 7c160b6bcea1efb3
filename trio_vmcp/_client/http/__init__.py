"""HTTP requests to one backend: limits, credentials, redirects, errors."""

__all__: list[str] = []
