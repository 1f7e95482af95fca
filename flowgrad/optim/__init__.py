"""Update rules as pure functions, what goes into them, and optimizers: a rule bound to a graph and a loss."""

from .named import AdaGrad, Adam, GradientDescent, Momentum, RMSProp
from .norms import NORM_BLOCK, NORM_LANES, block_norms, scale_of
from .optimizer import Optimizer, warn_independent
from .privacy import Privacy
from .rules import WORK, AdamRule, GradientDescentRule, Rule, State
from .schedules import Asked, CosineDecay, ExponentialDecay, Schedule, StepDecay, WarmUp, describe, is_own, restore
