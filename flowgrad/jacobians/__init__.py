"""The derivative of a node by a parent: kind and factor, and what is written from factors."""
