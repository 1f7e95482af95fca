"""What people feed: checked, remembered, left where it is, put in order, placed on workers."""

from .check import (
    Feeds,
    check_array,
    check_batch_size,
    check_feeds,
    check_labels,
    check_lengths,
    check_mapping,
    check_nodes,
    common_dtype,
    read_feeds,
    require_values,
    settled_feeds,
)
from .chunks import Chunked, Labels, Shape, file_rows, guarded, is_chunked
from .content import ROWS, describe_data
from .memory import FeedMemory, RememberedFeeds, owned
from .order import ORDER_BYTES, Batches, Epoch
from .placement import Lane, Placement, lane_of
