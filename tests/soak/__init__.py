"""An hour, on a virtual clock, with twenty backends that will not keep still."""
