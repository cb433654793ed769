"""Implicit models: run them, judge them, differentiate them, store them."""

from simtool.model.adjoint import input_gradient, output_sensitivity, state_sensitivity
from simtool.model.bounds import rho, sensitivity_norm
from simtool.model.certificates import KINDS, CertificateTable
from simtool.model.files import load_model, model_path, save_model
from simtool.model.forward import FixedPoint, Forward
from simtool.model.implicit import ImplicitModel
from simtool.model.wellposed import ComponentVerdict, Verdict

__all__ = [
    "KINDS",
    "CertificateTable",
    "ComponentVerdict",
    "FixedPoint",
    "Forward",
    "ImplicitModel",
    "Verdict",
    "input_gradient",
    "load_model",
    "model_path",
    "output_sensitivity",
    "rho",
    "save_model",
    "sensitivity_norm",
    "state_sensitivity",
]
