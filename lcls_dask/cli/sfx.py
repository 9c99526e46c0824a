"""``lcls-dask sfx``: crystallography, from frames to merged intensities, with pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArgumentError, TargetExistsError
from .output import as_json, print_json, print_table, run_argument
from .progress import task_bar

if TYPE_CHECKING:
    import xarray as xr

    from ..access.run import Run
    from ..sfx.recipe import Settings

#: Frames that failed which the table names; the result has all of them.
NAMED = 5


class _ChainByDefault(click.Group):
    """A group whose first argument may be a run: ``lcls-dask sfx RUN`` is ``lcls-dask sfx run RUN``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command's name in front of a run's."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


class _Cell(click.ParamType):  # type: ignore[type-arg]  # subscriptable only from click 8.4 on
    """Six numbers, or a file."""

    name = "'a b c al be ga' or file"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse it."""
        try:
            numbers = tuple(float(word) for word in str(value).replace(",", " ").split())
        except ValueError:
            return str(value)
        if len(numbers) != 6:
            self.fail(f"{value!r}: six numbers are wanted, a b c [Angstrom] al be ga [degree], or a file", param, ctx)
        return numbers


@click.group(cls=_ChainByDefault, subcommand_metavar="RUN [OPTIONS]... | COMMAND [ARGS]...")
def sfx() -> None:
    """Serial crystallography: from frames to merged intensities, and constants of detectors.

    `lcls-dask sfx RUN ...` is `lcls-dask sfx run RUN ...`, whose options `lcls-dask sfx run --help` tells.
    """


_POSITIVE = click.FloatRange(0, min_open=True)


@sfx.command("run")
@run_argument
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory of the result.")
@click.option("--cell", type=_Cell(), required=True, help="Cell [Angstrom, degree], or a .cell, PDB or MTZ file.")
@click.option("--space-group", help="Such as 'P 43 21 2'; a .cell file tells the centring alone.")
@click.option("--geometry", required=True, type=click.Path(), help="CrystFEL's .geom, or psana's geometry file.")
@click.option("--constants", type=click.Path(), help="File or directory of constants; without, frames are taken as "
              "they are.")  # fmt: skip
@click.option("--detector", help="The area detector, where there are several.")
@click.option("--kind", type=click.Choice(["jungfrau", "epix10ka", "cspad"]), default="jungfrau", show_default=True,
              help="Which bits tell the gain.")  # fmt: skip
@click.option("--configuration", type=click.Path(), help="Array in a file: control bits of an ePix10ka's pixels.")
@click.option("--common-mode", type=click.Choice(["row", "column", "bank"]), help="Median to take off.")
@click.option("--mask", type=click.Path(), help="Array in a file, not 0 for pixels that count.")
@click.option("--distance", type=_POSITIVE, help="Crystal to detector [m], instead of the geometry's.")
@click.option("--photon-energy", type=_POSITIVE, help="[eV], instead of the geometry's.")
@click.option("--threshold", type=float, default=4.0, show_default=True, help="Least value of a strong pixel.")
@click.option("--min-snr", type=_POSITIVE, default=6.0, show_default=True, help="Of a peak.")
@click.option("--min-pixels", type=click.IntRange(1), default=2, show_default=True, help="Of a peak.")
@click.option("--max-pixels", type=click.IntRange(1), default=30, show_default=True, help="Of a peak.")
@click.option("--min-radius", type=click.FloatRange(0), default=0.0, show_default=True, help="From the beam [pixel].")
@click.option("--statistics", type=click.Choice(["full", "sampled"]), default="full", show_default=True,
              help="Of all pixels of a ring, or of 100, which is faster.")  # fmt: skip
@click.option("--min-peaks", type=click.IntRange(1), default=15, show_default=True, help="Of a hit.")
@click.option("--max-peaks", type=click.IntRange(1), help="Of a hit.")
@click.option("--lattices", type=click.IntRange(1, 100), default=1, show_default=True, help="Most of one frame.")
@click.option("--evidence", type=float, default=40.0, show_default=True, help="Least score of a lattice.")
@click.option("--d-min", type=_POSITIVE, help="Limit of resolution [Angstrom]; by default the detector's corners.")
@click.option("--profile-radius", type=_POSITIVE,
              help="Of a node [1/Angstrom], for all crystals; by default that of each.")  # fmt: skip
@click.option("--mosaicity", type=click.FloatRange(0), default=0.0, show_default=True, help="Full angle [degree].")
@click.option("--scale", type=click.IntRange(0), default=2, show_default=True, help="Rounds of scaling.")
@click.option("--reject", type=_POSITIVE, help="Leave out measurements further from the others [sigma].")
@click.option("--anomalous", is_flag=True, help="Keep Friedel mates apart.")
@click.option("--shells", type=click.IntRange(1), default=10, show_default=True, help="Of resolution.")
@click.option("--cxi/--no-cxi", default=True, show_default=True, help="Whether to write the hits' frames.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Whether to draw them.")
@click.option("--block", type=click.IntRange(1), help="Frames of a task; by default a share of the run.")
@as_json
def run_(path: str, run: int | None, snapshot: str | None, out: Path, pictures: bool, json_: bool, **told: Any) -> None:
    """Find peaks, hits and crystals in RUN, integrate and merge them.

    OUT gets merged.mtz, merged.hkl, crystals.stream, hits/*.cxi, sfx.zarr with all that was found, and pictures. The
    same command goes on where it was interrupted.

    \b
    Examples:
      lcls-dask sfx run1 --out sfx1 --cell '79.1 79.1 37.9 90 90 90' --space-group P43212 \\
        --geometry jungfrau4M.geom --constants constants.h5
      lcls-dask sfx lcls://cxix12345/r0042 --out sfx42 --cell lyso.cell --space-group P43212 \\
        --geometry jungfrau4M.geom --constants constants --distance 0.1 --photon-energy 9480
    """
    from .. import open_run
    from ..plot import figure
    from ..sfx.chain import analyse
    from ..sfx.recipe import Settings

    for name in ("geometry", "constants", "configuration", "mask"):
        # workers may run elsewhere
        told[name] = None if told[name] is None else str(Path(told[name]).absolute())
    if isinstance(told["cell"], str):
        told["cell"] = str(Path(told["cell"]).absolute())
    settings = Settings(**told)
    opened = open_run(path, run=run, snapshot=snapshot)
    if pictures:
        figure()  # without matplotlib, an error before all the work
    with task_bar(quiet=json_):
        result = analyse(opened, out, settings)
    drawn = _pictures(opened, settings, result, out) if pictures else []
    files = sorted(one for one in out.iterdir() if one.suffix in (".mtz", ".hkl", ".stream", ".lst", ".zarr"))
    if json_:
        print_json({"files": list(map(str, files)), "pictures": list(map(str, drawn)), **numbers(result)})
        return
    for one in (*files, *drawn):
        click.echo(str(one))
    print_table(("quantity", "value"), _rows(result))
    for hint in _hints(result, settings):
        click.echo(hint)


def numbers(result: "xr.DataTree") -> dict[str, Any]:
    """What was counted, and figures of merit."""
    frames = result["frames"].to_dataset()
    told: dict[str, Any] = {
        "frames": frames.sizes["event"],
        "bad": frames.attrs["reasons"],
        "incomplete": int((frames["segments"].values < result["peaks"].to_dataset().sizes["segment"]).sum()),
        "hits": int(frames["hit"].sum()),
        "indexed": int((frames["crystals"] > 0).sum()),
        "crystals": int(frames["crystals"].sum()),
    }
    if told["crystals"]:
        told["profile_radius"] = float(result["crystals"].to_dataset()["profile_radius"].median())
    if "not_merged" in result.attrs:
        told["not_merged"] = result.attrs["not_merged"]
    if "figures" in result.children:
        figures, merged = result["figures"].to_dataset(), result["merged"].to_dataset().attrs
        told |= {"crystals_left_out": merged["crystals_left_out"], "d_min": float(figures["d_min"][-1])}
        names = (
            "unique",
            "measurements",
            "completeness",
            "multiplicity",
            "i_over_sigma",
            "r_split",
            "cc_half",
            "cc_star",
        )
        told |= {name: figures[f"{name}_overall"].item() for name in names}
        told["outer_shell"] = {name: figures[name][-1].item() for name in names}
    return told


def _rows(result: "xr.DataTree") -> list[tuple[str, str]]:
    told = numbers(result)
    bad = [f"event {event}, {why}" for event, why in told["bad"].items()]
    more = f"; and {len(bad) - NAMED} more, see frames in sfx.zarr" if len(bad) > NAMED else ""
    rows = [
        ("frames", f"{told['frames']:,}"),
        ("bad frames", f"{len(bad):,}{': ' if bad else ''}{'; '.join(bad[:NAMED])}{more}"),
        ("frames without some segments", f"{told['incomplete']:,}"),
        ("hits", f"{told['hits']:,} ({told['hits'] / told['frames']:.1%} of frames)"),
        ("indexed", f"{told['indexed']:,} ({told['indexed'] / max(told['hits'], 1):.1%} of hits)"),
        ("crystals", f"{told['crystals']:,}"),
    ]
    if "outer_shell" not in told:
        return rows
    outer = told["outer_shell"]
    rows += [
        ("crystals that were not merged", f"{told['crystals_left_out']:,}"),
        ("radius of a node, median", f"{told['profile_radius']:.2e} 1/Angstrom"),
        ("resolution", f"{told['d_min']:.2f} Angstrom"),
        ("", "overall (outer shell)"),
    ]
    for name, words, form in (
        ("measurements", "measurements", ",.0f"), ("unique", "unique reflections", ",.0f"),
        ("completeness", "completeness", ".1%"), ("multiplicity", "multiplicity", ".1f"),
        ("i_over_sigma", "I/sigma", ".1f"), ("r_split", "Rsplit", ".3f"), ("cc_half", "CC1/2", ".3f"),
        ("cc_star", "CC*", ".3f"),
    ):  # fmt: skip
        rows.append((words, f"{told[name]:{form}} ({outer[name]:{form}})"))
    return rows


def _hints(result: "xr.DataTree", settings: "Settings") -> list[str]:
    told, hints = numbers(result), []
    if not told["hits"]:
        hints.append("no hits: give a lower --threshold or --min-snr, fewer --min-peaks, or --constants")
    elif not told["indexed"]:
        hints.append(
            "no crystal: the cell must be known to 1 %, and the distance too; try --distance, or another --cell"
        )
    if told["bad"]:
        hints.append("bad frames stay bad in OUT: when what made them so is mended, choose another --out")
    if "not_merged" in told:
        hints.append(f"not merged: {told['not_merged']}")
    if settings.constants is None:
        hints.append("frames were taken as they are: give --constants where they are raw")
    if "merged" in result.children and result["merged"].to_dataset().attrs["space_group"][2:] == "1":
        hints.append(
            f"merged in {result['merged'].attrs['space_group']}: give --space-group where there is more symmetry"
        )
    return hints


def _pictures(run: "Run", settings: "Settings", result: "xr.DataTree", out: Path) -> list[Path]:
    from ..plot import crystals as plot
    from ..sfx.blocks import writing
    from ..sfx.chain import photons_of
    from ..sfx.files import whole_file
    from ..sfx.recipe import Tools

    geometry = Tools.of(settings, run.number).geometry
    made = {"powder": plot.powder_with_peaks(result, geometry), "hits": plot.hit_rate(result)}
    if "figures" in result.children:
        made["shells"] = plot.resolution_shells(result)
        crystals = result["crystals"].to_dataset()
        best = int(crystals["explained"].values.argmax())
        event = int(crystals["frame"][int(crystals["offset"].values.searchsorted(best, side="right")) - 1])
        made["frame"] = plot.indexed_frame(result, geometry, event, photons_of(run, settings, event))
    paths = []
    for name, figure in made.items():
        path = out / f"{name}.png"
        with writing(path), whole_file(path, again=True) as place:
            figure.savefig(place)
        paths.append(path)
    return paths


@sfx.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HDF5 file of the constants."
)
@click.option("--detector", help="The area detector, where there are several.")
@click.option("--kind", default="jungfrau", show_default=True, help="Which bits tell the gain: jungfrau or cspad.")
@click.option("--gain", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="File of gains [ADU/keV] to put along, which darks do not tell.")  # fmt: skip
@click.option("--events", type=click.IntRange(1), help="Of each run, the first so many.")
@as_json
def darks(
    runs: tuple[str, ...],
    out: Path,
    detector: str | None,
    kind: str,
    gain: Path | None,
    events: int | None,
    json_: bool,
) -> None:
    """Derive pedestals, noise and bad pixels from dark RUNs: of a Jungfrau, one in each stage of gain.

    \b
    Examples:
      lcls-dask sfx darks exp/r0010 exp/r0011 exp/r0012 --out constants.h5
      lcls-dask sfx darks run1 --out constants.h5 --gain gain.npy
    """
    from .. import open_run
    from ..sfx.constants.darks import derive_constants, write_constants
    from ..sfx.constants.files import read_array
    from ..sfx.runs import frames_of

    if out.exists():
        raise TargetExistsError(f"{out}: is there already; remove it, or choose another with --out")
    opened = [open_run(path) for path in runs]
    frames = [frames_of(run, detector) for run in opened]
    if any(array.sizes["event"] == 0 for array in frames):
        raise ArgumentError("a run has no events to derive constants from")
    if events is not None:
        frames = [array.isel(event=slice(0, events)) for array in frames]
    derived = derive_constants(frames, kind, segments=frames[0]["segment"].values)
    derived.attrs |= {
        "runs": ", ".join(f"{run.experiment} {run.number} @{run.snapshot}" for run in opened),
        "events": ", ".join(str(array.sizes["event"]) for array in frames),
    }
    write_constants(derived, out, None if gain is None else read_array(gain))
    rows = [
        {
            "range": number,
            "frames": int(derived["frames"][number].max()),
            "pedestal": round(float(derived["pedestals"][number].median()), 1),
            "rms": round(float(derived["rms"][number].median()), 2),
            "bad": int((derived["pixel_status"][number] > 0).sum()),
        }
        for number in range(derived.sizes["range"])
        if int(derived["frames"][number].max())
    ]
    if json_:
        print_json({"target": str(out), "ranges": rows})
        return
    columns = ["range", "frames", "pedestal", "rms", "bad"]
    print_table(columns, [[row[column] for column in columns] for row in rows], title=str(out))
