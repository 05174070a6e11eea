"""Server over HTTP: the REST half of the Open Inference Protocol, and a request for `curl` that takes an image and returns JSON.

Answers are those of the gRPC servicers: both call `tlcli.service.inference.open_inference` and `tlcli.service.inference.classifier`.
"""
