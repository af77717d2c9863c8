"""The cost of receiving an image: this client and its alternatives side by side.

`python -m benchmarks --help` says how to run it. The parts, in the order of the data flow:

    responses.py    the prepared responses, with the hashes of their images
    server.py       the benchmark server: one process that sends prepared bytes
    scenarios.py    the scenarios: which response, how many requests, how many at a time
    client.py       what every contender has in common
    libraries.py    HTTP libraries as contenders, in the usual way and tuned
    contenders.py   the contenders: how each one sends requests and decodes images
    meters.py       the measurements inside the client process
    worker.py       one contender, one scenario, one meter: prints one JSON line
    rate_simulation.py  the rate controller with a simulated clock
    lab.py          runs workers in interleaved rounds
    bench_*.py      the topics: which scenarios under which meter
    targets.py      the targets
    summary.py      medians over rounds, ratios within a round
    report.py       the report as JSON and Markdown
    plots.py        plots of growth and stalls
"""
