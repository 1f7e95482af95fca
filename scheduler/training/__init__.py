"""A training, from `fit` to its last checkpoint."""

from .callbacks import KEEP, STOP, Callback, CSVLog, EarlyStopping, ReduceLROnPlateau, TensorBoard
from .checkpoint import Checkpoints
from .estimate import costs_of
from .trainer import History, Trainer
