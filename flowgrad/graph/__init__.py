"""A graph owns its nodes; nodes are the reference interpreter: one sample, node by node, obviously right."""

from .node import (
    Constant,
    Graph,
    Node,
    Variable,
    ancestors,
    check_indices,
    current_graph,
    default_graph,
    jacobians_of,
    outside_scopes,
    pull_back,
    run_rule,
    scope,
    size,
)
