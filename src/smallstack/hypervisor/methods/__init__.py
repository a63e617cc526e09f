"""The methods of the Hypervisor service, a module for each topic; see service.py.

Methods that only read need an authenticated caller, those that act on a VM its owner. What goes
wrong is told in the reply's ``Error``; a raw method tells it in its first message.
"""
