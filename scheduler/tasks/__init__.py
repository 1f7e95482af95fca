"""What is to be done, as plain records under keys that name their content."""

from .daskgraph import Load, futures_in, is_future, partitions, row_chunks, to_dask
from .identity import is_named
from .keys import Key, Ref, attrs_token, attrs_tokens, combine, group_of, is_readable, token
from .records import Data, Record, Task, TaskGraph, about, prefix_of, references
from .sealed import sealed
from .tree import FAN_IN, SIDE_BY_SIDE, bounds, fold_tree, levels, reduce_some, reduce_tree
