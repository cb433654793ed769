"""Implicit models: run them, judge them, differentiate them, store them."""

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
    "load_model",
    "model_path",
    "save_model",
]
