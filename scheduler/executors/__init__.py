"""Where tasks run: one short file per executor, one small interface."""

from .base import Executor, Handle, Lost
from .local import LocalExecutor

__all__ = ["Executor", "Handle", "LocalExecutor", "Lost"]
