"""HTTP server with the REST API of the Open Inference Protocol, and a route for `curl` that takes an image and returns JSON.

Responses are identical to those of the gRPC servicers, because both call `tlcli.service.inference.open_inference` and
`tlcli.service.inference.classifier`.
"""
