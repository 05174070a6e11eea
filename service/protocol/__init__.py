"""Wire protocol shared by the server and the clients: methods, message parsing and conversion, and error statuses."""
