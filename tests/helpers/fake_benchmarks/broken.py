from benchmarks.run import Run


def main(run: Run) -> None:
    run.table("T", [{"step": "a"}])
    raise ValueError("a real error")
