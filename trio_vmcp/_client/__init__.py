"""One backend: the built-in connector and its clients. Which file answers which question:

- How is a connection made for each `Backend.transport`? `built_in.py`. Which era does the backend speak? `probe.py`;
  what the two sides tell each other of themselves: `negotiate.py`.
- How does a request time out, report progress and get cancelled? `client.py`, `progress.py`. What does an era add?
  `handshake.py`, `stateless.py`; requests in several rounds: `rounds.py`.
- How do bytes get there? `channels/`, which has a map of its own. What does HTTP add? `http/`: `connection_limit.py`,
  `cookies.py`, `credentials.py`, `given.py` (secrets, which no text may show), `link.py` (redirects), `reply.py`
  (`Retry-After`), `errors.py` (of the transport).
- How are changes heard? `listening.py` (when a held stream is opened again), `subscriptions.py` (`subscriptions/listen`
  of the stateless era), `channels/standalone.py` (the GET stream of the handshake era).
- What may a backend ask, and which handler answers? `server_requests.py`, `handlers.py`. Its log messages:
  `notice_feed.py`.
- What of ours does nothing wait for, such as a cancel notice? `unawaited.py`.
- Which results are cached? `cache.py`. How often is a mistake of a backend logged? `complaints.py`.
"""

__all__: list[str] = []
