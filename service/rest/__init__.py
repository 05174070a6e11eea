"""The server over HTTP: the Open Inference Protocol's REST half, and one request of our own for `curl`. Tensors and images in, JSON out.

What is answered is what gRPC's edges answer: both ask `tlcli.service.inference.open_inference` and `tlcli.service.inference.classifier`.
"""
