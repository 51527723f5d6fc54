"""The service: few-shot image classification over HTTP. Imports no training code and no PyTorch."""
