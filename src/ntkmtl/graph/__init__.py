"""The autograd graph of k losses: where its shared part ends, and the gradients there.

All walks over the graph and all calls of ``torch.autograd.grad`` for losses are in this package.
"""

from ntkmtl.graph._compiled import allow_retained_backward, require_repeatable
from ntkmtl.graph._crossing import Start, crossing_gradients, starts, task_gradients
from ntkmtl.graph._cut import Bypass, Crossing, Cut, cut_nodes, find_cut
from ntkmtl.graph._engine import (
    accumulate,
    add_to_grad,
    adds_up,
    as_real,
    averages_several_passes,
    differentiate,
    has_hooks,
    has_late_hooks,
    leaves,
    objective_gradients,
    plain_backward,
    read_parameters,
    trainable,
    unretained,
    vjp,
)
from ntkmtl.graph._features import Branches, Features, FeaturesLike, branch
from ntkmtl.graph._gradients import STACK_LIMIT, TaskGradients
from ntkmtl.graph._named import (
    HeadGraph,
    feature_gradients,
    head_graph,
    path_around,
    require_cut,
)
from ntkmtl.graph._scan import Scan, is_node_held, scan
from ntkmtl.graph._walk import Edge, Walk, edge_of, shape_of, walk, zeros_of

__all__ = [
    "STACK_LIMIT",
    "Branches",
    "Bypass",
    "Crossing",
    "Cut",
    "Edge",
    "Features",
    "FeaturesLike",
    "HeadGraph",
    "Scan",
    "Start",
    "TaskGradients",
    "Walk",
    "accumulate",
    "add_to_grad",
    "adds_up",
    "allow_retained_backward",
    "as_real",
    "averages_several_passes",
    "branch",
    "crossing_gradients",
    "cut_nodes",
    "differentiate",
    "edge_of",
    "feature_gradients",
    "find_cut",
    "has_hooks",
    "has_late_hooks",
    "head_graph",
    "is_node_held",
    "leaves",
    "objective_gradients",
    "path_around",
    "plain_backward",
    "read_parameters",
    "require_cut",
    "require_repeatable",
    "scan",
    "shape_of",
    "starts",
    "task_gradients",
    "trainable",
    "unretained",
    "vjp",
    "walk",
    "zeros_of",
]
