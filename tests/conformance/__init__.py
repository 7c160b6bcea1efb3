"""The official conformance suite, and the client of ours that it looks at; `nox -s conformance`."""
