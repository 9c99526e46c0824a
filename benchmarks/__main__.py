"""``python -m benchmarks NAME...`` measures; without names it lists what there is."""

import argparse
import importlib
import tempfile
from pathlib import Path

from . import timing

NAMES = (
    *("hsd", "jungfrau", "opening", "index", "random_access", "scalars", "importing"),
    *("gateway", "remote", "passthrough", "lclstreamer", "tiled", "cluster", "tof", "sfx", "indexing"),
)


def main() -> None:
    """Read the command line, measure, tidy up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="'all', or some of those listed without one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast")
    parser.add_argument("--full", action="store_true", help="the largest sizes: an index of 10^8 events, 20 GB of disk")
    parser.add_argument("--dir", type=Path, help="where to make files, which are removed afterwards (default: $TMPDIR)")
    parser.add_argument("--repeats", type=int, help="how often each contender runs (default 5, with --quick 2)")
    options = parser.parse_args()
    chosen = NAMES if options.names in ([], ["all"]) else options.names
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in chosen}
    if not options.names:
        for name, module in modules.items():
            print(f"{name:16}{(module.__doc__ or '').splitlines()[0]}")
        return
    timing.pin()
    print(timing.machine())
    if options.quick:
        print("--quick: tiny sizes, the ratios mean little")
    for name in chosen:
        print(f"\n{name}: {(modules[name].__doc__ or '').splitlines()[0]}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=options.dir) as directory:
            repeats = options.repeats or (2 if options.quick else 5)
            modules[name].run(timing.Setting(Path(directory), options.quick, options.full, repeats))


if __name__ == "__main__":
    main()
