"""All models of a server: loaded versions, the policy that chooses them, and the control over both."""
