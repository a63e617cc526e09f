"""The metadata service on 169.254.169.254: ``http`` (bytes), ``routes`` (answers), ``server``."""
