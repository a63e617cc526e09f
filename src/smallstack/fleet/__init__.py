"""The fleet manager. The room stands empty until the first of its parts is built."""
