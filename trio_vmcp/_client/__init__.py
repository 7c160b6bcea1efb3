"""One backend: the built-in connector and its clients. Which file answers which question:

- How is a connection made for each `Backend.transport`? `built_in.py`. Which era does the backend speak? `probe.py`;
  what the two sides tell each other of themselves: `negotiate.py`.
- How does a request time out, report progress and get cancelled? `client.py`, `progress.py`. What does an era add?
  `handshake.py`, `stateless.py`; requests in several rounds: `rounds.py`.
- How do bytes get there? `channels/`: the seam `channel.py`, then one file for each transport. What does HTTP add?
  `http/`: `connection_limit.py`, `credentials.py`, `link.py` (redirects), `errors.py`.
- How are changes heard? `listening.py` (a stream that is held open), `subscriptions.py` (of the modern era).
- What may a backend ask, and which handler answers? `server_requests.py`, `handlers.py`. Its log messages:
  `log_feed.py`.
- What of ours does nothing wait for, such as a cancel notice? `unawaited.py`.
- Which results are cached? `cache.py`. How often is a mistake of a backend logged? `complaints.py`.
"""

__all__: list[str] = []
