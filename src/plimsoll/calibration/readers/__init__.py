"""Result files of load generators and servers, one file per format; a file added here is a format added.

A reader module has ``FORMAT`` (one line), ``recognises(path, head)`` and ``read(path)``; see `measured.Reader`.
"""
