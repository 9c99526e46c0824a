"""What is behind a gateway: the experiments of this user, and an experiment's runs."""

from typing import Any

from ...errors import FormatError
from .gateway import gateway_at


def experiments(gateway: str) -> list[str]:
    """Names of the experiments that this user belongs to, as far as the token goes.

    Parameters
    ----------
    gateway : str
        Address.

    Returns
    -------
    list of str
    """
    found = _list(gateway_at(gateway).document("/v1/runs"), "experiments")
    return [str(entry["experiment"]) if isinstance(entry, dict) else str(entry) for entry in found]


def run_table(gateway: str, experiment: str) -> list[dict[str, Any]]:
    """The runs of an experiment: number, state, events, start, detectors, steps, what is scanned, problems.

    Parameters
    ----------
    gateway : str
    experiment : str

    Returns
    -------
    list of dict
    """
    rows = _list(gateway_at(gateway).document(f"/v1/runs/{experiment}"), "runs")
    if not all(isinstance(row, dict) and isinstance(row.get("run"), int) for row in rows):
        raise FormatError(f"{gateway}: the table of {experiment} cannot be understood")
    return rows


def _list(document: Any, name: str) -> list[Any]:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise FormatError(f"what the gateway answers has no {name}; is lcls.gateway the address of a gateway?")
    return found
