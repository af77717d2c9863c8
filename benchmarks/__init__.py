"""What a picture costs its reader: the client side by side with what people would use instead.

`python -m benchmarks --help` says how to run it. The parts, in the order in which data passes them:

    answers.py      what the canned server says, built once, with the hashes of its images
    server.py       the canned server: one process, prebuilt bytes
    scenarios.py    the table of scenarios: which answer, how many requests, how many at a time
    contenders.py   the table of contenders: how each of them asks and takes the images
    meters.py       what is measured inside the client process, and how
    worker.py       one contender, one scenario, one meter: prints one JSON line
    lab.py          runs workers in interleaved rounds
    bench_*.py      the topics: which scenarios under which meter
    targets.py      the figures to reach
    summary.py      medians over rounds, ratios within a round
    report.py       writes it down, as JSON and Markdown
    plots.py        pictures of growth and stalls
"""
