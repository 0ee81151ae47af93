"""``python -m tests.fuzz --problems 5000 --seed 1``"""

import argparse
import faulthandler
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random problems against float64.")
    parser.add_argument("--problems", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=1, help="the first one's number (1)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # file that says how far it is
    args = parser.parse_args()
    numbers = range(args.seed, args.seed + args.problems)
    if args.worker:
        return work(numbers, Path(args.worker))
    failed = attack(numbers, [sys.executable, "-m", "tests.fuzz"])
    print(f"{args.problems} problems from {args.seed} on, {failed} failed")
    return 1 if failed else 0


def work(numbers: range, at_hand: Path) -> int:
    """Solves problems in this process. Writes the current number, and how many have failed, to a file.

    The file outlives the process, which a problem may kill.
    """
    from .problems import solve

    faulthandler.enable()
    failed = 0
    for number in numbers:
        at_hand.write_text(f"{number} {failed}")
        try:
            solve(number)
        except AssertionError as error:
            failed += 1
            print(reproducer(number), " ".join(str(error).split()), flush=True)
    at_hand.write_text(f"done {failed}")
    return 0


def attack(numbers: range, worker: list[str]) -> int:
    """Solves problems in a subprocess, restarting it when it dies; returns the number of failures."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        at_hand = Path(folder, "at-hand")
        while numbers:
            at_hand.write_text(f"{numbers[0]} 0")
            command = [*worker, "--worker", str(at_hand), "--seed", str(numbers[0]), "--problems", str(len(numbers))]
            status = subprocess.run(command, cwd=TESTS.parent, check=False).returncode
            last, failed_before = at_hand.read_text().split()
            failed += int(failed_before)
            if last == "done":
                return failed
            died = int(last)
            failed += 1
            print(reproducer(died), f"the process died with status {status}", flush=True)
            numbers = range(died + 1, numbers.stop)
    return failed


def reproducer(number: int) -> str:
    return f"FAILED python -m tests.fuzz --problems 1 --seed {number} #"


if __name__ == "__main__":
    sys.exit(main())
