"""Report on a run: a self-contained HTML page, its charts as PNG files, and its figures as JSON."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_multirate.config.files import write_text
from hf_multirate.reporting.comparison import compare_records, summary_sentence
from hf_multirate.reporting.run_record import (
    RunRecord,
    format_number,
    in_between,
    plain_values,
    read_record,
    stage_rows,
)


PAGE, FIGURES = "report.html", "report.json"
ROWS = {
    "seconds": ("seconds of training, without evaluation", "baseline_seconds"),
    "steps": ("steps", "baseline_steps"),
    "full_steps": ("full steps", "baseline_steps"),
    "seconds_full_step": ("seconds of a full step, mean", "baseline_seconds_full_step"),
    "seconds_fast_step": ("seconds of a fast step, mean", None),
    "speedup_proved": ("speed-up over the baseline", None),
    "speedup": ("speed-up over full steps, whole run", None),
    "speedup_of_steps": ("speed-up over full steps, steps only", None),
    "speedup_predicted": ("speed-up over full steps, predicted", None),
}
"""Rows of the table: key of the figure -> its label, and the key of the figure of the baseline."""


def report(
    folder: str | Path,
    baseline: str | Path | None = None,
    out: str | Path | None = None,
    *,
    allow_differences: bool = False,
) -> Path:
    """Write a report on a run, or a comparison of a run with a baseline.

    Args:
        folder: ``output_dir`` of the run.
        baseline: ``output_dir`` of a run of standard training with the same data and seed, or None.
        out: Output folder; None for the folder ``report`` in ``folder``.
        allow_differences: Whether to compare runs that differ in data, seed or machine. The page then lists the
            differences in a warning.

    Returns:
        Path of the HTML page.

    Raises:
        ValueError: a folder has no record of a run or one of another version, the runs are not comparable, the report
            cannot be written, or matplotlib is not installed.
    """
    run = read_record(folder)
    baseline_run = None if baseline is None else read_record(baseline)
    figures = compare_records(run, baseline_run)
    if figures.get("differences") and not allow_differences:
        raise ValueError(
            f"{str(folder)!r} cannot be compared with {str(baseline)!r}: "
            f"{'; '.join(figures['differences'])}. Train again with the same data, seed and machine, or use "
            "--allow-differences, which adds a warning to the page."
        )
    target = Path(out) if out is not None else Path(folder, "report")
    label = "standard training" if run.standard else "multirate"
    runs = {label: run} if baseline_run is None else {label: run, "baseline": baseline_run}
    try:
        target.mkdir(parents=True, exist_ok=True)
        page = _page(runs, figures, target)
        write_text(target / FIGURES, json.dumps(plain_values(figures), indent=2, allow_nan=False) + "\n")
        write_text(target / PAGE, page)
    except OSError as error:
        raise ValueError(
            f"the report cannot be written into {str(target)!r} ({error.strerror or error}): choose another folder "
            "with --out."
        ) from None
    return target / PAGE


def _page(runs: dict[str, RunRecord], figures: dict[str, Any], target: Path) -> str:
    try:
        import jinja2

        from hf_multirate.reporting import charts
    except ImportError as error:
        raise ValueError(f"a report needs {error.name}: from a clone, run pip install '.[report]'.") from error
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
    """Rows of the table of figures: key, label, value of the run, value of the baseline."""
    rows = [
        (key, name, format_number(figures[key]), format_number(figures[other]) if other in figures else "")
        for key, (name, other) in ROWS.items()
        if key in figures
    ]
    baseline = figures.get("baseline_metrics", {})
    return rows + [
        (key, key, format_number(value), format_number(baseline.get(key))) for key, value in figures["metrics"].items()
    ]


def _settings(run: RunRecord) -> dict[str, Any]:
    """Settings, seeds and versions of a run, as listed on the page."""
    groups = {
        f"rate group {group['name']}": f"{', '.join(group['patterns'])}; period {group['period']}, {in_between(group)}"
        for group in run.groups
    }
    left_out = ("groups", "stage_list")
    config = {key: value for key, value in run.config.items() if key not in left_out and value is not None}
    machine = {key: value for key, value in run.environment.items() if key != "versions"}
    versions: dict[str, Any] = run.environment["versions"]
    return (stage_rows(run) or groups) | config | run.arguments | run.data | versions | machine
