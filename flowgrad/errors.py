"""Errors that speak to the person: what is wrong, which node, both numbers, what to do."""

import sys
import warnings


class FlowgradError(Exception):
    """Base of every error that flowgrad raises on purpose."""


class ShapeError(FlowgradError, ValueError):
    """Dimensions that do not fit together; raised when a node is built or a value is set."""


class GraphError(FlowgradError, ValueError):
    """A graph that does not make sense: nodes of two graphs, a loss that is not scalar, a missing value."""


class FeedError(FlowgradError, ValueError):
    """Feeds that cannot be used: missing, ragged, empty, not finite, of the wrong size or type."""


class DataError(FlowgradError, ValueError):
    """A file or data set that cannot be read or written."""


class GradientError(FlowgradError, AssertionError):
    """A rule of an op that disagrees: a derivative with central differences, several samples with each of them alone."""


class NodeFailed(FlowgradError, RuntimeError):
    """The rule of one node raised an exception; the message names the node, ``__cause__`` is the original."""


class SettingError(FlowgradError, AttributeError):
    """An attribute that is not there or cannot be set any more: it would count for nothing."""


class ClusterError(FlowgradError, ConnectionError):
    """A dask cluster that cannot be reached or used."""


def warn(message: str) -> None:
    """Warn at the first line that is not flowgrad's own: the person's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
