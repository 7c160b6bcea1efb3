"""Does a test turn red when a line is gone or says the contrary? `targets` names the lines of which it must."""
