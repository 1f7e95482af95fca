"""A graph owns its nodes; nodes are the reference interpreter: one sample, node by node, obviously right."""

from .graph import Graph, current_graph, default_graph, named, outside_scopes, scope, scope_name, scoped, whole
from .node import Node, ancestors, jacobians_of, node_of, pull_back, reach, run_rule, size
from .variables import Constant, Variable, check_indices
