"""A web page to try a model: `jmceln app`."""
