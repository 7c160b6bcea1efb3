"""Many backends: one session over them. Which file answers which question:

- In which order does a session open and close? `owner.py`; the phases: `life.py`.
- Which calls are in flight, and how does a close wait for them? `admission.py`.
- May this caller call, and which backend has the name? `calls.py`. How does a call go through one backend, and when is
  it sent again? `call.py`; the circuit breaker: `breaker.py`, `trial.py`.
- What may a call ask for besides its arguments, such as rounds that its caller answers? `call_options.py`.
- Which names exist, and what do they stand for? `directory.py`. When does a change of them take effect?
  `directory_updates.py`. What have other instances bound? `foreign_names.py`.
- Which backends belong to the session, and when do they connect? `members.py`. In which state is one of them, and what
  do callers see of a change? `member.py`.
- How is one connection made and closed? `connecting.py`. By which connector? `connectors.py`. What is kept of it while
  it takes calls? `connection.py`. When does an answer say that the backend has lost its session? `session_use.py`.
- When may a backend be connected again? `reconnects.py`. When is one stopped that is not used? `stopping.py`.
- How do the backends' sessions end of a session that is not open? `goodbyes.py`.
- Which log messages do backends send? `log_levels.py`.
- Where do subscriptions go when their resource has another owner? `moves.py`.
- What does a backend offer? `listing.py`; asked for, one list after another: `lister.py`, `pages.py`; after a
  `list_changed`: `refresh.py`; held once for all sessions of a factory: `shared_lists.py`.
  Which of its tools are let through, and how are they described? `offered_tools.py`.
- What is stored, and when is it written? `row.py`; one step at a time: `stored_row.py`. How do several instances know
  which of them uses a session? `use_marks.py`. Which attributes wait to be stored? `attribute_changes.py`. How is an
  operation of the storage bounded? `row_storage.py`.
- What are observers told? `observing.py`; of calls: `observed_calls.py`.
- Where do `Session.changes()` and the counts of `Session.backends` come from? `change_feed.py`, `health.py`.
"""

__all__: list[str] = []
