"""The parts of `jmceln train`, which other training code can use as well."""
