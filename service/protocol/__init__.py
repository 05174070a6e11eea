"""Wire protocol shared by the server and the clients: methods, message conversion, error statuses, and limits on parsing."""
