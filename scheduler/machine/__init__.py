"""The process and machine: threads, memory, floating point, signals, and what is known of them."""
