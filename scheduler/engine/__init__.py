"""What people call for values and derivatives."""

from .engine import Engine
