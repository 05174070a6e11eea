"""Wire protocol shared by server and clients: methods, message conversion, error statuses, and the cost of parsing."""
