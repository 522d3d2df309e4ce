"""The jobs behind the commands: each opens data, trains or evaluates, tracks, and writes reports.

Here training and evaluation, which know no tracker, meet MLflow. Modules are imported by name.
"""
