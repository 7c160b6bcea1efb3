"""Channels to one backend. Which file answers which question:

- What is a channel, and what does a request carry? `channel.py`.
- Streamable HTTP: how is the answer read from a response? `streamable.py`; the messages from events:
  `event_reader.py`. The session id, resumed answers and DELETE: `streamable_session.py`; when refusals mean that the
  session is lost: `refusals.py`. The GET stream: `standalone.py`.
- Channels whose calls share one stream: `duplex.py`; which message is for which call: `inbox.py`. HTTP+SSE:
  `http_sse.py`. Lines of text: `lines.py`.
- Programs: `stdio.py`; how a process is started and ended: `process.py`; what it writes to stderr: `stderr.py`.
- How is a message checked and parsed? `parsing.py`. How fast may a backend send? `pace.py`.
"""

__all__: list[str] = []
