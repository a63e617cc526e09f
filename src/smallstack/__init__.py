"""SmallStack: a private-cloud runtime that creates a virtual machine in well under a second."""

__version__ = "0.1.0"
