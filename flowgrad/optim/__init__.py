"""Update rules as pure functions, what goes into them, and optimizers: a rule bound to a graph and a loss."""
