"""A training, from `fit` to its last checkpoint."""

from .callbacks import KEEP, STOP, Callback, EarlyStopping, ReduceLROnPlateau
from .checkpoint import Checkpoints
from .trainer import History, Trainer
