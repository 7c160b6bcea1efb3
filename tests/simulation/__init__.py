"""Random histories of sessions over scripted backends in virtual time: each from one seed, judged from its trace."""
