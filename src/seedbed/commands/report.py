"""Write a run's report."""


def write_report(run):
    return run / "report.html"
