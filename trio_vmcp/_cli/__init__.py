"""The parts of the command `trio-vmcp`, in the order of its work.

- `signals.py`: what ends the command, from its first step on. `command.py`: from arguments to an exit status.
- `arguments.py`: which plan the arguments make. `given.py`: the arguments of a tool. Both pure.
- `sources.py`: the plan's servers, from a file, a URL or a program. `config_file.py`: what such a file says, pure.
- `requests.py`: checks the servers, or makes one request; `watch.py`: a session and its requests while they run;
  `conditions.py`: a session that stays open.
- `serve_options.py`, `serve.py`: `trio-vmcp serve`: what it was asked for, and a server of it; `backend_lines.py`: what
  it prints of each backend; `file_changes.py`: what becomes of changes of its file;
  `standard_streams.py`: its one client with `--stdio`; `collector.py`: the garbage collector meanwhile.
- `texts.py`, `definitions.py`: results as text. `sanitizer.py`: text fit to be shown. All pure.
- `view.py`: what is shown, as data; `plain_view.py`, `rich_view.py`: two ways to show it; `output.py`: writing it;
  `verbose.py`: the log beside it.
- `demo.py`: the servers and the script of `trio-vmcp demo`.
"""

__all__: list[str] = []
