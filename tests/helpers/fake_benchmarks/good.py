from benchmarks.run import Run


def main(run: Run) -> None:
    table = run.table("T", [{"what": "a"}])
    goal = run.goal("fast")
    run.fill(table.rows[0], {"ms": 1.5})
    run.reach(goal, "2.0", met=True)
