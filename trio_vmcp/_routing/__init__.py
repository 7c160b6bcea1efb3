"""How names are decided; public names are in `trio_vmcp.routing`. Which file answers which question:

- What is a backend's name composed to? `strategies.py`. How is a composed name made to fit? `name_rule.py`.
- Which backend has a name? `names.py`. Where does a call go? `table.py`; a URI that no backend lists: `matching.py`.
"""

__all__: list[str] = []
