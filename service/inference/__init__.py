"""The Open Inference Protocol (version 2): the zoo as named tensors in and out."""
