"""Many sessions by id: the parts of `SessionManager`. Which file answers which question:

- May one more session be live? `places.py`.
- What does the manager know of a session, live or asleep? `known.py`.
- What is the manager to do with a session, and when? `due.py`; how does one task wait for all of that? `agenda.py`.
- How does any number of callers wait for one opening, and what is given up when the manager is left? `openings.py`.
- Which backends do sessions have, and what differs from one list to the next? `configuration.py`. How do live sessions
  take over others? `changes.py`.
- How does a session get live, fall asleep, end, and where is it counted? `registry.py`.
- How does a session end that is not live here? `ends.py`.
- What does the log say when the storage fails a request? `storage_failures.py`.
"""

__all__: list[str] = []
