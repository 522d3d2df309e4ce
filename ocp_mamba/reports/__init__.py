"""Reports of evaluations: tables, plots, HTML pages and sentences, made from plain results.

Knows no tracker. Import from its modules; none loads matplotlib before it draws.
"""
