"""The page: one HTML file without network, the same pictures as PNG, and its figures as JSON."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_multirate.config.files import write_text
from hf_multirate.reporting.comparison import compare_records, summary_sentence
from hf_multirate.reporting.run_record import RunRecord, format_number, in_between, plain_values, read_record


PAGE, FIGURES = "report.html", "report.json"
ROWS = {
    "seconds": ("seconds of training, without evaluation", "baseline_seconds"),
    "steps": ("steps", "baseline_steps"),
    "full_steps": ("steps with a full backward", "baseline_steps"),
    "seconds_full_step": ("seconds of a full step, mean", "baseline_seconds_full_step"),
    "seconds_fast_step": ("seconds of any other step, mean", None),
    "speedup_proved": ("speed-up over the baseline", None),
    "speedup": ("speed-up over only full steps, whole run", None),
    "speedup_of_steps": ("the same, steps only", None),
    "speedup_predicted": ("the same, predicted", None),
}
"""Figure -> what it is called, and the figure of the baseline."""


def report(
    folder: str | Path,
    baseline: str | Path | None = None,
    out: str | Path | None = None,
    *,
    allow_differences: bool = False,
) -> Path:
    """Write a report on a run.

    Args:
        folder: ``output_dir`` of the run.
        baseline: ``output_dir`` of a run of standard training with the same data and seed, or None.
        out: Where the files go; None for ``report`` in ``folder``.
        allow_differences: Whether to compare runs that differ in data, seed or machine; the page is marked.

    Returns:
        The page.

    Raises:
        ValueError: a folder has no record of a run, or one of another version; the runs differ in what would have to
            be equal; the report cannot be written; or matplotlib is not installed.
    """
    run = read_record(folder)
    other = None if baseline is None else read_record(baseline)
    figures = compare_records(run, other)
    if figures.get("differences") and not allow_differences:
        raise ValueError(
            f"{str(baseline)!r} cannot be compared with {str(folder)!r}, which differs in "
            f"{'; '.join(figures['differences'])}. Train again with the same data, seed and machine, or give "
            "--allow-differences, which marks the page."
        )
    target = Path(out) if out is not None else Path(folder, "report")
    runs = {"multirate": run} if other is None else {"multirate": run, "baseline": other}
    if run.standard:
        runs = {"standard": run} if other is None else {"run": run, "baseline": other}
    try:
        target.mkdir(parents=True, exist_ok=True)
        page = _page(runs, figures, target)
        write_text(target / FIGURES, json.dumps(plain_values(figures), indent=2, allow_nan=False) + "\n")
        write_text(target / PAGE, page)
    except OSError as error:
        raise ValueError(
            f"the report cannot be written into {str(target)!r} ({error.strerror or error}): give --out."
        ) from None
    return target / PAGE


def _page(runs: dict[str, RunRecord], figures: dict[str, Any], target: Path) -> str:
    try:
        import jinja2

        from hf_multirate.reporting import charts
    except ImportError as error:
        raise ValueError(f"a report needs {error.name}: pip install 'hf-multirate[report]'.") from error
    charts.write_pngs(runs, target)
    template = files("hf_multirate.reporting").joinpath("page.html.jinja").read_text(encoding="utf-8")
    run, *others = runs.values()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        model=run.model,
        verdict=summary_sentence(figures),
        figures=figures,
        rows=_rows(figures),
        labels=list(runs),
        pictures=charts.svgs(runs),
        settings={label: _settings(record) for label, record in runs.items()},
        compared=bool(others),
    )


def _rows(figures: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Key, name, value of the run and of the baseline, as text."""
    rows = [
        (key, name, format_number(figures[key]), format_number(figures[other]) if other in figures else "")
        for key, (name, other) in ROWS.items()
        if key in figures
    ]
    theirs = figures.get("baseline_metrics", {})
    return rows + [
        (key, key, format_number(value), format_number(theirs.get(key))) for key, value in figures["metrics"].items()
    ]


def _settings(run: RunRecord) -> dict[str, Any]:
    """What the page lists of a run below its figures."""
    groups = {
        f"rate group {group['name']}": f"{', '.join(group['patterns'])}; period {group['period']}, {in_between(group)}"
        for group in run.groups
    }
    rest = {key: value for key, value in run.config.items() if key != "groups" and value is not None}
    machine = {key: value for key, value in run.environment.items() if key != "versions"}
    versions: dict[str, Any] = run.environment["versions"]
    return groups | rest | run.arguments | run.data | versions | machine
