"""What is to be done, as plain records under keys that name their content."""
