"""A web page to try a model on: `jmceln app`."""
