"""Load on a real server: the command over loopback, under clients of both eras."""
