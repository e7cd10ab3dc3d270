"""What `jmceln train` trains with, for use in other training code as well."""
