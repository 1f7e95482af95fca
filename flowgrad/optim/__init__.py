"""Update rules as pure functions, what goes into them, and optimizers: a rule bound to a graph and a loss."""

from .assignments import WORK, Assignments
from .doubts import warn_doubtful, warn_independent
from .named import AdaGrad, Adam, AdamW, AMSGrad, GradientDescent, Lion, Momentum, Nesterov, RMSProp
from .norms import NORM_BLOCK, NORM_LANES, block_norms, scale_of
from .optimizer import Optimizer
from .privacy import Privacy
from .rows import RowGradient, Table, distinct, entries_of, spans_of
from .rules import AdamRule, GradientDescentRule, Rule, State, clipped
from .schedules import Asked, CosineDecay, ExponentialDecay, Schedule, StepDecay, WarmUp, describe, is_own, restore
