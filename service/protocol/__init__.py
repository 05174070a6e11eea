"""The wire: methods, message conversion, errors as statuses. Shared by server and clients."""
