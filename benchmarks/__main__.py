"""The command: `python -m benchmarks [topic …] [--quick] [-o folder]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import (
    bench_fanout,
    bench_growth,
    bench_imports,
    bench_latency,
    bench_memory,
    bench_pacing,
    bench_stalls,
    bench_stream,
    report,
)
from .contenders import CONTENDERS
from .lab import Lab

TOPICS: dict[str, ModuleType] = {
    "latency": bench_latency,
    "stream": bench_stream,
    "memory": bench_memory,
    "stalls": bench_stalls,
    "growth": bench_growth,
    "fanout": bench_fanout,
    "pacing": bench_pacing,
    "imports": bench_imports,
}
ROUNDS, QUICK_ROUNDS = 5, 3
DEFAULT_OUTPUT = Path("out/benchmarks")


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    topics = {name: TOPICS[name] for name in TOPICS if name in (args.topics or TOPICS)}
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    lab = Lab(args.contenders, rounds=rounds, quick=args.quick, say=_say)
    interrupted = False
    try:
        with lab:
            for topic in topics.values():
                topic.run(lab)
    except KeyboardInterrupt:
        interrupted = True
        _say("Stopped.")
    if lab.samples:
        titles = {name: topic.TITLE for name, topic in topics.items()}
        for file in report.write(lab, titles, args.output, interrupted=interrupted):
            print(file)
    else:
        _say("Nothing was measured.")
    if interrupted:
        return 130
    return 0 if lab.samples else 1


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, TOPICS))
    topics = "\n".join(
        f"  {name:{width}}  {(topic.__doc__ or '').splitlines()[0]}"
        for name, topic in TOPICS.items()
    )
    contenders = "\n".join(f"  {name:14}  {one.title}" for name, one in CONTENDERS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure elkimg_async beside what people would use instead, and write\n"
        "results.json, report.md and plots into a folder.",
        epilog=f"topics:\n{topics}\n\ncontenders:\n{contenders}\n\n"
        "examples:\n"
        "  python -m benchmarks                         everything: more than an hour\n"
        "  python -m benchmarks stream --quick          a part, in a few minutes\n"
        "  python -m benchmarks memory --contenders elkimg,openai -o out/memory\n\n"
        "The other libraries come with: pip install 'elkimg-async[bench]'",
    )
    parser.add_argument("topics", nargs="*", type=_topic, metavar="topic", help="default: all")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="FOLDER",
        help="folder of the report, created if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"number of rounds (default: {ROUNDS}; quick: {QUICK_ROUNDS})",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and requests")
    parser.add_argument(
        "--contenders",
        type=_contenders,
        default=tuple(CONTENDERS),
        metavar="A,B",
        help="comma-separated contenders; ratios need openai and bare (default: all)",
    )
    return parser


def _topic(text: str) -> str:
    if text not in TOPICS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(TOPICS)}")
    return text


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError("at least one round is needed")
    return value


def _contenders(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in CONTENDERS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(CONTENDERS)}")
    return names


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
