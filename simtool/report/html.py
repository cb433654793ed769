"""report.html: one self-contained page, no scripts, no links to anywhere, readable in light and dark."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from simtool.report import text
from simtool.report.pattern import BlockCounts

STYLE = """
:root { color-scheme: light dark; --ink: #1f2733; --soft: #5b6675; --line: #dde2e8; --page: #f6f7f9; --card: #fff;
  --accent: #2f6db5; --good: #2e7d4f; --bad: #b3392b; --alarm: #fdf3e3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #a3adba; --line: #353c47; --page: #14181e;
  --card: #1c222b; --accent: #7fb2ea; --good: #6fcf97; --bad: #f08a7c;
  --alarm: #33291a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .5rem; }
p { max-width: 44rem; margin: .4rem 0 .9rem; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .86rem; display: block; }
.card .what { text-transform: uppercase; letter-spacing: .05em; font-size: .74rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.note { background: var(--alarm); border: 1px solid #d9822b; border-left-width: .35rem; border-radius: .4rem;
  padding: .7rem 1rem; margin: 1rem 0; overflow-wrap: anywhere; }
.note p { margin: 0 0 .4rem; max-width: none; } .note p:last-child { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: .92rem; }
th, td { padding: .38rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .82rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.heat small { display: block; opacity: .8; font-size: .76rem; }
td.none { color: var(--soft); opacity: .6; text-align: center; }
td.key { overflow-wrap: anywhere; font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .82rem; }
figure { margin: .8rem 0 1rem; background: #fff; border: 1px solid var(--line); border-radius: .6rem; padding: .7rem; }
figure img { display: block; width: 100%; max-width: 100%; height: auto; margin: 0 auto; }
figure.narrow img { max-width: 46rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""

_THEOREMS = {
    "acyclic": "A has no cycles: every state follows by substitution",
    "norm": "the infinity norm of A, with Lipschitz constants, is below 1",
    "perron-frobenius": "the Perron-Frobenius eigenvalue of |A|, with Lipschitz constants, is below 1",
    "mu-inf": "the matrix measure of A is below 1 and all slopes lie in [0, 1]",
}


def _card(what: str, value: str, note: str, tone: str = "") -> str:
    return (
        f'<div class="card"><span class="what">{escape(what)}</span>'
        f'<b class="{tone}">{escape(value)}</b><span>{escape(note)}</span></div>'
    )


def _cards(report: dict[str, Any]) -> str:
    cards = []
    if report["task"] == "classification" and report["accuracy"] is None:
        what = "accuracy" if report["agreement"] is None else "same class as baseline"
        cards.append(_card(what, text.percent(report["agreement"]), "the data have no labels"))
    elif report["task"] == "classification":
        note = "no baseline given"
        if report["baseline_accuracy"] is not None:
            points = text.points(report["accuracy_drop"])
            note = f"baseline {text.percent(report['baseline_accuracy'])}, {points} points"
        cards.append(_card("accuracy", text.percent(report["accuracy"]), note))
    else:
        note = "no baseline given"
        if report["mse"] is None:
            note = "the data have no targets"
        elif report["baseline_mse"] is not None:
            note = f"baseline {text.number(report['baseline_mse'])}"
        cards.append(_card("mean squared error", text.number(report["mse"]), note))
    if report["sparsity"] is None:
        cards.append(_card("non-zeros", text.count(report["nnz"]), "no baseline size is known"))
    else:
        note = f"{text.count(report['nnz'])} of {report['denominator'].replace(str(report['baseline_nnz']), text.count(report['baseline_nnz']), 1)}"
        cards.append(_card("sparsity", text.percent(report["sparsity"]), note))
    if report["certified"] is None and report["structure"] == "exact":
        cards.append(_card("certified rows", "none needed", "the exact form of a network: no row was fitted"))
    elif report["certified"] is None:
        cards.append(_card("certified rows", text.MISSING, "this model carries no certificates"))
    else:
        every = report["certified"] == report["rows"]
        note = f"largest relative gap {report['max_relative_gap']:.1e}"
        if report["max_relative_gap"] == 0:
            note = "every gap is exactly 0"
        value = f"{text.count(report['certified'])} of {text.count(report['rows'])}"
        cards.append(_card("certified rows", value, note, "good" if every else "bad"))
    by = report["well_posed_by"]
    note = _THEOREMS.get(by, "no theorem proves a unique state")
    cards.append(_card("well-posed", f"yes, {by}" if by else "not proven", note, "good" if by else "bad"))
    return f'<div class="cards">{"".join(cards)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True) -> str:
    style = ' class="n"' if numeric else ""
    top = "".join(f"<th{style if i else ''}>{escape(title)}</th>" for i, title in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f"<td{style if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def _heat(counts: BlockCounts) -> str:
    densities = counts.density()
    head = "".join(
        f'<th class="n">{escape(band.name)}<br>{text.count(band.size)}</th>' for band in counts.columns
    )
    lines = []
    for i, band in enumerate(counts.rows):
        cells = []
        for j in range(len(counts.columns)):
            found, density = int(counts.counts[i, j]), float(densities[i, j])
            if not found:
                cells.append('<td class="none">·</td>')
                continue
            strength = 8 + 62 * density**0.5
            cells.append(
                f'<td class="n heat" style="background: color-mix(in srgb, var(--accent) {strength:.0f}%, var(--card))">'
                f"{text.count(found)}<small>{text.percent(density, 1)}</small></td>"
            )
        total = int(counts.counts[i].sum())
        lines.append(
            f"<tr><th>{escape(band.name)} <span class='soft'>{text.count(band.size)}</span></th>{''.join(cells)}"
            f'<td class="n">{text.count(total)}</td></tr>'
        )
    return (
        f'<div class="scroll"><table><thead><tr><th>rows \\ columns</th>{head}<th class="n">sum</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def image(png: bytes, alt: str, narrow: bool = False) -> str:
    data = base64.b64encode(png).decode()
    kind = ' class="narrow"' if narrow else ""
    return f'<figure{kind}><img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}"></figure>'


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="key">{escape(value)}</td></tr>' for name, value in rows
    )
    return f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    body = "".join(f"<p><b>Warning:</b> {escape(text.sentence(warning))}</p>" for warning in warnings)
    return f'<div class="note" role="note">{body}</div>'


def _what_is_drawn(report: dict[str, Any]) -> str:
    if report["form"] == "layers":
        return "The rows of each layer (its output channels) by what one position of it reads, in the order of the network."
    return "M = [A B; C D] by blocks, last hidden layer first."


def _on_supports(report: dict[str, Any]) -> str:
    if not report["fixed_support"]:
        return ""
    return f" among rows with the same non-zeros, which a heuristic chose ({report['fixed_support']} rows)"


def _attack_note(report: dict[str, Any]) -> str:
    attack = report["attack"]
    moved = f"{text.count(attack['inputs_perturbed'])} inputs ({text.percent(attack['fraction'], 0)}, seed {attack['seed']})"
    if attack["method"] == "fgsm":
        how = f"Epsilon times the sign of the loss gradient of the {attack['gradient']} was added to {moved}"
    else:
        how = f"Epsilon times sign(1/2 - u) was added to {moved}"
    clipped = (
        "and clipped to [0, 1], where the data lie"
        if attack["clipped_to"]
        else "and not clipped: the data leave [0, 1]"
    )
    return f"{how}, {clipped}. The bias is never perturbed."


def render(
    report: dict[str, Any], counts: BlockCounts, images: dict[str, bytes], how_made: Sequence[tuple[str, str]]
) -> str:
    """The page; ``images`` maps figure names (pattern, certificates, attack) to PNG bytes."""
    data = report["data"]
    split = f", split {data['split']}" if data["split"] else ""
    parts = [
        "<h1>Implicit model report</h1>",
        f'<p class="soft">{text.count(report["samples"])} samples of {escape(data["source"])}{escape(split)}</p>',
        _warnings(report["warnings"]),
        _cards(report),
        "<h2>Model and baseline</h2>" if report["baseline"] else "<h2>Model</h2>",
        table(*text.summary(report, attack=False)),
    ]
    parts += [f'<p class="soft">Note: {escape(text.sentence(note))}</p>' for note in report["notes"]]
    if report["sparsity"] is not None:
        parts.append(f'<p class="soft">Sparsity = 1 - non-zeros / {escape(report["denominator"])}.</p>')
    parts += [
        "<h2>Where the non-zeros are</h2>",
        f"<p>{_what_is_drawn(report)} Blocks are drawn on a square-root scale; darker means a "
        "larger share of non-zeros in a cell. Grey pairs of blocks hold none.</p>",
        image(images["pattern"], f"Sparsity pattern of M by blocks, {report['nnz']} non-zeros"),
        "<h2>Non-zeros by block</h2>",
        "<p>Count, and share of the entries of that pair of blocks.</p>",
        _heat(counts),
    ]
    if "certificates" in images:
        parts += [
            "<h2>Certificates</h2>",
            "<p>Every row is the solution of a convex problem. Its relative duality gap, computed on the row as it is "
            f"stored, bounds how far it can be from the optimum{_on_supports(report)}.</p>",
            image(images["certificates"], "Histogram of the relative duality gaps of all rows", narrow=True),
        ]
    if report["attack"] is not None:
        parts += ["<h2>Under attack</h2>", f"<p>{escape(_attack_note(report))}</p>"]
        what, head, rows = text.attack_table(report)
        if "attack" in images:
            columns = 3 if report["baseline"] and what != text.KEPT else 2
            parts += [
                f"<p>{escape(text.sentence(what))}; epsilon 0 is the clean data.</p>",
                table(head[:columns], [row[:columns] for row in rows]),
                image(images["attack"], f"{what} against the perturbation size", narrow=True),
            ]
        else:
            parts.append("<p>The data have no targets, so there is no error to show.</p>")
    errors = {name: value for name, value in report["state_error_by_block"].items() if value is not None}
    if errors:
        blocks = [(name, text.number(value, 3)) for name, value in errors.items()]
        parts += [
            "<h2>State error by block</h2>",
            "<p>Relative Frobenius error against the baseline's states, free-running: errors of earlier layers are "
            "carried into later ones.</p>",
            table(["block", "error"], blocks),
        ]
    parts += [
        "<h2>Bounds and the fixed point</h2>",
        table(
            ["", ""],
            [
                ("||S||inf: outputs per unit of input (infinity norm)", text.number(report["s_norm_inf"])),
                ("rho: the looser bound by norms alone", text.number(report["rho"])),
                ("||A||inf, rescaled where a rescaling exists", text.number(report["norm_a_inf"])),
                ("||A||inf as stored", text.number(report["norm_a_inf_raw"])),
                ("iterations, mean", text.number(report["iterations_mean"])),
                ("iterations, largest", text.count(report["iterations_max"])),
                ("converged", text.percent(report["converged"])),
            ],
        ),
        "<h2>How it was made</h2>",
        _pairs(list(how_made)),
        "<footer>Written by simtool. The figures are beside this page as PNG and SVG, the numbers in report.json.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Implicit model report</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
