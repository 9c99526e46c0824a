"""``lcls-dask tof``: a run's time of flight, from samples to spectra, with pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import TargetExistsError, UnsupportedError
from .output import as_json, print_json, print_table, run_argument
from .progress import task_bar

if TYPE_CHECKING:
    import xarray as xr


class _Range(click.ParamType):  # type: ignore[type-arg]  # subscriptable only from click 8.4 on
    """Two numbers, ``low:high``."""

    name = "low:high"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Parse it."""
        if isinstance(value, tuple):
            return value
        low, colon, high = str(value).partition(":")
        try:
            if not colon or not float(low) < float(high):
                raise ValueError
            return float(low), float(high)
        except ValueError:
            self.fail(f"{value!r} is no range; write it low:high, such as 300:400", param, ctx)


@click.command()
@run_argument
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory of the result.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    help="Least height of a hit [ADU]; by default 6 times the noise that is measured.",
)
@click.option("--detector", help="The digitizer, where there are several.")
@click.option("--method", type=click.Choice(["cfd", "leading_edge", "dynamic_leading_edge", "matched"]), default="cfd",
              show_default=True)  # fmt: skip
@click.option("--dead-time", type=click.FloatRange(0), default=1.5, show_default=True, help="After a hit [ns].")
@click.option("--positive", is_flag=True, help="Pulses go up.")
@click.option("--times", type=_Range(), default=(0.0, 500.0), help="Range of the spectrum [ns]; 0:500 by default.")
@click.option("--bin", "bin_ns", type=click.FloatRange(0, min_open=True), default=0.1, show_default=True, help="In ns.")
@click.option("--length", type=click.FloatRange(0, min_open=True), help="Flight path [mm]; without it, no energies.")
@click.option("--t0", type=float, default=0.0, show_default=True, help="Time of electrons without a flight path [ns].")
@click.option("--retardation", type=float, default=0.0, show_default=True, help="In eV.")
@click.option("--energies", type=_Range(), default=(0.0, 1000.0), help="Range of the spectrum [eV]; 0:1000 by default.")
@click.option("--bin-ev", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True, help="In eV.")
@click.option("--line", "lines", type=_Range(), multiple=True,
              help="Region of an angular distribution [eV, or ns without --length]; may be repeated.")  # fmt: skip
@click.option("--beta", type=click.FloatRange(-1, 2), default=2.0, show_default=True, help="Of these lines.")
@click.option("--pulse-energy", metavar="NAME", help="Variable that the covariance is partial to.")
@click.option("--format", "kind", type=click.Choice(["zarr", "nc"]), default="zarr", show_default=True)
@as_json
def tof(
    path: str,
    run: int | None,
    snapshot: str | None,
    out: Path,
    threshold: float | None,
    detector: str | None,
    method: str,
    dead_time: float,
    positive: bool,
    times: tuple[float, float],
    bin_ns: float,
    length: float | None,
    t0: float,
    retardation: float,
    energies: tuple[float, float],
    bin_ev: float,
    lines: tuple[tuple[float, float], ...],
    beta: float,
    pulse_energy: str | None,
    kind: str,
    json_: bool,
) -> None:
    """Reduce the digitizer of RUN: hits, spectra, angular distributions, covariance.

    OUT gets tof.zarr (or tof.nc) and a PNG of each.

    \b
    Examples:
      lcls-dask tof run1 --out tof1
      lcls-dask tof run1 --out tof1 --threshold 60 --method matched --length 590 --t0 20 \\
        --energies 150:600 --line 340:360 --pulse-energy gmd.raw.milliJoulesPerPulse
    """
    from .. import open_run
    from ..plot import figure
    from ..plot.spectra import draw
    from ..tof.chain import Settings, analyse

    target = out / f"tof.{kind}"
    if target.exists():
        raise TargetExistsError(f"{target}: is there already; remove it, or choose another directory with --out")
    settings = Settings(
        threshold=threshold, detector=detector, method=method, dead_time=dead_time, polarity=1 if positive else -1,
        range_ns=times, bin_ns=bin_ns, length=length, t0=t0, retardation=retardation, range_ev=energies, bin_ev=bin_ev,
        lines=lines, beta=beta, pulse_energy=pulse_energy,
    )  # fmt: skip
    opened = open_run(path, run=run, snapshot=snapshot)
    # what would be in vain without is seen to before the work
    figure()
    out.mkdir(parents=True, exist_ok=True)
    with task_bar(quiet=json_):
        result = analyse(opened, settings)
    _write(result, target)
    pictures = draw(result, out)
    if json_:
        print_json({"target": str(target), "pictures": list(map(str, pictures)), **_summary(result)})
        return
    print_table(("quantity", "value"), _summary(result).items())
    for one in (target, *pictures):
        click.echo(str(one))
    if not result["counts"].any():
        click.echo("no hits: give --positive where pulses go up, other --times, or a lower --threshold")
    if length is None:
        click.echo("no energies: give --length and --t0")


def _write(result: "xr.Dataset", target: Path) -> None:
    if target.suffix == ".zarr":
        result.to_zarr(target, mode="w-", consolidated=False)
        return
    try:
        result.to_netcdf(target, engine="h5netcdf")
    except (ImportError, ValueError) as error:
        if "h5netcdf" in str(error):
            raise UnsupportedError(
                f"{target}: netCDF needs h5netcdf: pip install h5netcdf, or --format zarr"
            ) from error
        raise


def _summary(result: "xr.Dataset") -> dict[str, Any]:
    from ..tof.angular import ANGLES

    told: dict[str, Any] = {
        "events": int(result["shots"]),
        "hits": int(result["counts"].sum() + result["outside"].sum()),
        "threshold": f"{result.attrs['settings.threshold']:g} ADU, {_noises(result):.1f} times the noise",
    }
    if result.sizes["channel"] < ANGLES:
        told["polarisation"] = (
            f"needs {ANGLES} channels or more at different angles; there are {result.sizes['channel']}"
        )
        return told
    for i in range(result.sizes["line"]):
        region = (
            f"{float(result['line_low'][i]):g} to {float(result['line_high'][i]):g} {result['line_low'].attrs['units']}"
        )
        for name, unit in (("degree", ""), ("tilt", " degree")):
            value, error = float(result[name][i]), float(result[f"{name}_error"][i])
            told[f"{name} of polarisation, {region}" if name == "degree" else f"{name}, {region}"] = (
                f"{value:.3f} ± {error:.3f}{unit}"
            )
    return told


def _noises(result: "xr.Dataset") -> float:
    """The threshold in units of the noisiest channel's noise."""
    return float(result.attrs["settings.threshold"] / result["noise"].max())
