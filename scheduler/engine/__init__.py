"""What people call for values and derivatives."""
