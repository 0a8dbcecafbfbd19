"""What the server costs beside a bare session loop: `make bench`.

    tools       programs, environments and cores that the rest needs
    workloads   models, and requests to them in every format
    server      a server on a core of its own: start, memory, metrics, stop
    bare        the bare session loop, and the perfect Python loop
    load        closed and open loops, by existing load generators
    suites/     what is measured, a file per subject; each gives rows
    context     what every suite is given
    usage       how much of its core a process had
    report      rows, verdicts, Markdown, JSON, comparison with an earlier run
    plots       SVG

The server lies wholly on core A, load on core B, and the bare loop on core A while the server idles. A machine is never
quiet, so what is compared is measured next to each other in short rounds, and a row gives the median and an interval
that holds it in 95 of 100 cases.
"""
