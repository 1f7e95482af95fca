"""From nodes to a fused, differentiated program, its counts, and values and gradients as records."""
