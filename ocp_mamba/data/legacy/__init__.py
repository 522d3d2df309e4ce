"""Import of older `.npz` files of contexts and targets: layouts, repairs, and the import report."""
