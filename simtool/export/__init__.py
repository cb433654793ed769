"""Implicit models in other runtimes: a PyTorch module, an ONNX file, a PyTorch program, sparse safetensors.

``plan`` says in which order the states are computed and from what; ``torch_module`` and ``onnx_model`` write that plan
down for their runtime, ``safetensors_file`` stores A, B, C, D as they are, ``sizes`` counts bytes. Import the module
that is wanted: nothing here is loaded with ``import simtool``.
"""
