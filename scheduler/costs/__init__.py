"""What work costs on this machine and this cluster, and the plan that follows."""
