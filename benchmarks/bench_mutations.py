"""Images in and out of mutated bodies: `python -m benchmarks.bench_mutations [COUNT [FIRST]]`.

Takes every dialect that servers speak, mutates it, splits it anywhere, feeds it to the decoder,
and counts. Ends with status 1, and the first bodies that went wrong, if a single image is lost or
invented.
"""

import sys
import time

from tests.helpers.mutations import check_body

COUNT = 100_000
_MAX_SHOWN = 5


def main(arguments: list[str]) -> int:
    count = int(arguments[0]) if arguments else COUNT
    first = int(arguments[1]) if len(arguments) > 1 else 0
    started = time.perf_counter()
    went_in = came_out = wrong = 0
    for seed in range(first, first + count):
        try:
            more_in, more_out = check_body(seed)
        except AssertionError as problem:
            wrong += 1
            if wrong <= _MAX_SHOWN:
                print(f"seed {seed}: {str(problem)[:2_000]}\n", file=sys.stderr)
            continue
        went_in += more_in
        came_out += more_out
    seconds = time.perf_counter() - started
    print(
        f"{count:,} bodies, {went_in:,} images in, {came_out:,} out, {wrong} wrong, {seconds:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
