"""The operating system: paths, processes and signals, the processor, the memory allocator.

Importing this room loads nothing; its modules load psutil where they need it.
"""
