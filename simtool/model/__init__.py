"""Implicit models: run them, judge them, differentiate them, store them."""

from simtool.model.adjoint import input_gradient, output_sensitivity, state_sensitivity
from simtool.model.bounds import rho, sensitivity_norm
from simtool.model.cascade_scaling import scaled_cascade
from simtool.model.certificates import KINDS, CertificateTable
from simtool.model.compact import Compacted, compact_model
from simtool.model.composition import affine, affine_map, cascade, concatenate, parallel_sum
from simtool.model.feedback_loops import feedback, feedback_pair, loop_gain
from simtool.model.files import load_layers, load_model, model_path, save_model
from simtool.model.forward import FixedPoint, Forward
from simtool.model.implicit import ImplicitModel
from simtool.model.layered import SparseLayers
from simtool.model.lowrank import LowRank, low_rank
from simtool.model.multiplication import elementwise, multiply, output_bound
from simtool.model.perturbation import PerturbationBound, difference_bound, perturbation_bound, state_bound
from simtool.model.wellposed import ComponentVerdict, Verdict

__all__ = [
    "KINDS",
    "CertificateTable",
    "Compacted",
    "ComponentVerdict",
    "FixedPoint",
    "Forward",
    "ImplicitModel",
    "LowRank",
    "PerturbationBound",
    "SparseLayers",
    "Verdict",
    "affine",
    "affine_map",
    "cascade",
    "compact_model",
    "concatenate",
    "difference_bound",
    "elementwise",
    "feedback",
    "feedback_pair",
    "input_gradient",
    "load_layers",
    "load_model",
    "loop_gain",
    "low_rank",
    "model_path",
    "multiply",
    "output_bound",
    "output_sensitivity",
    "parallel_sum",
    "perturbation_bound",
    "rho",
    "save_model",
    "scaled_cascade",
    "sensitivity_norm",
    "state_bound",
    "state_sensitivity",
]
