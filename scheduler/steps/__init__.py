"""One optimizer step: its program, its tasks at each grain, its update."""
