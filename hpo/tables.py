"""What people read: tables of studies and trials, and the best config. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from hpo.spec import StudySpec
from hpo.studies import StudySummary, TrialRecord

STYLE_OF_STATE = {
    "COMPLETE": "green",
    "PRUNED": "yellow",
    "FAIL": "red",
    "RUNNING": "cyan",
    "WAITING": "dim",
}
MAX_ROWS = 40
HEADING_WIDTH = 11


def trials_table(
    trials: Sequence[TrialRecord],
    spec: StudySpec,
    best: TrialRecord | None,
    num_trials: int,
    title: str = "",
) -> Table:
    """Return one row a trial, the best one marked; it stands above the others if it is none of them.

    Args:
        trials: The newest ones, by number.
        spec: Of their study.
        best: The one that leads.
        num_trials: Of the whole study.
        title: Above the table.
    """
    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column(spec.metric, justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    searched = [name for name, kind in spec.space.items() if not _is_tied(kind)]
    for name in searched:
        table.add_column(_heading(name), justify="right", no_wrap=True)
    is_older = best is not None and all(trial.number != best.number for trial in trials)
    rows = [best, *trials] if best is not None and is_older else list(trials)
    for trial in rows:
        is_best = best is not None and trial.number == best.number
        mark = " *" if is_best else ""
        table.add_row(
            f"{trial.number}{mark}",
            Text(_state(trial), style=STYLE_OF_STATE.get(trial.state, "")),
            shown(trial.value),
            str(trial.step),
            *(shown(trial.config.get(name)) for name in searched),
            style="bold" if is_best else "",
        )
    if num_trials > len(rows):
        hidden = num_trials - len(rows)
        table.caption = f"{hidden} older trials: hpo status {spec.study} --all"
    return table


def samples_table(samples: Sequence[Mapping[str, object]]) -> Table:
    """Return what was generated, prompt by prompt, so that one reads how its answers change."""
    table = Table(header_style="bold", show_lines=False)
    table.add_column("validation", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("generated", overflow="fold", ratio=1)
    by_prompt: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for sample in samples:
        asked = (_one_line(sample.get("prompt")), _one_line(sample.get("expected")))
        by_prompt.setdefault(asked, []).append(sample)
    for (prompt, expected), answers in by_prompt.items():
        table.add_section()
        table.add_row("prompt", "", Text(prompt, style="bold"))
        table.add_row("expected", "", Text(expected, style="green"))
        for sample in sorted(answers, key=lambda s: int(str(s["validation"]))):
            generated = Text(_one_line(sample.get("generated")))
            table.add_row(str(sample["validation"]), str(sample.get("step", "")), generated)
    return table


def _one_line(value: object) -> str:
    text = "" if value is None else str(value)
    return text.replace("\n", "⏎").replace("\t", " ")


def studies_table(studies: Sequence[StudySummary]) -> Table:
    """Return one row a study."""
    table = Table(header_style="bold")
    table.add_column("study")
    table.add_column("trials", justify="right")
    for state in STYLE_OF_STATE:
        table.add_column(state.lower(), justify="right")
    for study in studies:
        counts = [str(study.counts.get(state, 0)) for state in STYLE_OF_STATE]
        table.add_row(study.name, str(study.num_trials), *counts)
    return table


def shown(value: object) -> str:
    """Return a value as it stands in a table: floats with four digits that matter."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def in_words(reason: str) -> str:
    """Return why a trial ended as people say it."""
    return reason.replace("_", " ")


def as_json(trial: TrialRecord) -> dict[str, object]:
    """Return a trial as programs read it."""
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "step": trial.step,
        "best_step": trial.best_step,
        "reason": trial.reason,
        "message": trial.message,
        "notes": list(trial.notes),
        "seconds": trial.seconds,
        "params": trial.params,
        "config": trial.config,
        "validations": [{"validation": k, **said} for k, said in trial.reports.items()],
    }


def counted(counts: Mapping[str, int]) -> str:
    """Return `3 complete, 2 pruned` for counts by state, leaving out what there is none of."""
    words = [f"{counts[state]} {state.lower()}" for state in STYLE_OF_STATE if counts.get(state)]
    return ", ".join(words) or "no trials"


def _heading(name: str) -> str:
    """Return a long option's name broken at its underscores: a terminal has 80 columns."""
    lines = [""]
    for part in name.split("_"):
        if lines[-1] and len(lines[-1]) + len(part) >= HEADING_WIDTH:
            lines[-1] += "_"
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]}_{part}" if lines[-1] else part
    return "\n".join(lines)


def _is_tied(kind: object) -> bool:
    return isinstance(kind, dict) and "value" in kind


def _state(trial: TrialRecord) -> str:
    told_by_state = {"finished", "pruned", "failed"}
    if trial.reason is None or trial.reason in told_by_state:
        return trial.state
    return f"{trial.state} ({in_words(trial.reason)})"
