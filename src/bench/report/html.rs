//! Runs as a page: one file that holds everything, works without a network, in light and in dark, on a desk, on a phone
//! and on paper.
//!
//! Every chart is drawn twice, wide and narrow, and the page shows the one that fits: text that is scaled down with its
//! chart cannot be read. Without its script the page shows all that it has; the script adds values at the pointer.

use indicatif::HumanCount;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts;
use super::plot::{Chart, Heat, Style};
use super::text::{self, Figure, NONE, count, percentile};
use crate::bench::latency::{PERCENTILES, show_micros};
use crate::bench::merge::distinct_names;
use crate::bench::{Outcomes, Run, Search};
use crate::count::counted;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page.
///
/// # Errors
///
/// If a run's histogram is damaged, or a chart cannot be drawn.
pub(in crate::bench) fn page(runs: &[Run]) -> anyhow::Result<String> {
    // Markup is escaped as it is written; what turns or hides text is not.
    let runs = &runs.iter().map(text::printable_run).collect::<anyhow::Result<Vec<_>>>()?[..];
    let names = distinct_names(runs.iter());
    let title = match runs {
        [run] => run.name.clone(),
        runs => counted(runs.len(), "run").to_string(),
    };
    let mut figures = Vec::new();
    for chart in charts::all(runs, &names)? {
        figures.push(figure(&chart)?);
    }
    let mut details = Vec::new();
    for (run, name) in runs.iter().zip(&names) {
        details.push(all_figures(run, name, runs.len() > 1)?);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Nothing is asked of anybody, whatever is in the runs.
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";
                title { "echoloop bench: " (title) }
                // Without it a browser asks for /favicon.ico.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    @match runs {
                        [run] => (one(run)),
                        runs => (several(runs, &names)),
                    }
                    @for figure in &figures { (figure) }
                    @if let [run] = runs {
                        @if let Some(search) = &run.search { (steps(search)) }
                        (tables(run))
                    }
                    @for details in &details { (details) }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

/// The figures of one run that matter most.
fn one(run: &Run) -> Markup {
    html! {
        p.lead {
            @if run.addresses == [run.config.address.as_str()] || run.addresses.is_empty() {
                (run.config.address)
            } @else {
                (run.config.address) " (" (run.addresses.join(", ")) ")"
            }
            ", " (text::sizes(&run.config)) " messages, " (text::pace(run)) ", " (text::when(&run.started))
            @if run.merged > 1 { ", " (run.merged) " runs merged" }
        }
        (problems(run))
        dl.cards {
            @for (what, figure) in &cards(run) {
                div { dt { (what) } dd { (figure) } }
            }
        }
        @if let Some(search) = &run.search { p.answer { (text::answer(search)) } }
    }
}

/// What stands on the tiles.
fn cards(run: &Run) -> Vec<Figure> {
    let time = |number| percentile(&run.response, number);
    let max = if run.response.count == 0 { NONE.to_owned() } else { text::longest(&run.response) };
    let mut cards = vec![("replies/s", count(run.rate))];
    if let Some((_, kept)) = text::results(run).into_iter().find(|(what, _)| *what == "rate kept") {
        cards.push(("rate kept", kept));
    }
    cards.extend([("p50", time(0)), ("p99", time(2)), ("max", max)]);
    cards.push((
        "connections",
        format!("{} of {}", HumanCount(run.connections.opened), HumanCount(run.connections.asked)),
    ));
    let Outcomes { answered_late, unanswered, failed, never_sent, .. } = run.outcomes;
    let lost = unanswered.saturating_add(failed);
    cards.push((if run.datagrams.is_some() { "lost" } else { "unanswered" }, HumanCount(lost).to_string()));
    if run.service.is_some() {
        let late = answered_late.saturating_add(never_sent.sum());
        cards.push(("late or never sent", HumanCount(late).to_string()));
    }
    cards.push(("errors", HumanCount(run.error_count()).to_string()));
    cards
}

/// What is wrong with a run, and what to keep in mind.
fn problems(run: &Run) -> Markup {
    html! {
        @if let Some(why) = text::ended_early(run) { p.problem { "It " (why) "." } }
        @if let Some(rate) = run.rate_kept.as_ref().filter(|rate| !rate.kept) { p.problem { (sentence(&rate.text)) } }
        @for error in &run.errors {
            p.problem { (error.kind.counted(error.count)) "; the first: " (error.first) }
        }
        @for mismatch in run.mismatches.iter().skip(1) { p.problem { (mismatch) } }
        @for verdict in run.criteria.iter().filter(|verdict| verdict.holds) {
            p.problem { "Failed: " (verdict.criterion) " (" (verdict.figure) ")" }
        }
        @for warning in &run.generator.warnings { p.problem { "Warning: " (warning) } }
    }
}

/// A text with a capital letter at its beginning.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// A table in a box of its own, in which it scrolls sideways.
fn scrolling(name: &str, table: Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(name) tabindex="0" { (table) } }
}

/// Several runs, side by side.
fn several(runs: &[Run], names: &[String]) -> Markup {
    let rows = text::rows(runs, names);
    let (head, rows) = rows.split_first().map_or((&[][..], &[][..]), |(head, rows)| (&head[..], rows));
    let table = html! {
        table.sticky {
            caption { "The runs side by side. In brackets: the ratio to the first." }
            thead {
                tr {
                    td {}
                    @for (number, name) in head.iter().skip(1).enumerate() {
                        th scope="col" { (key(Style::Run(number))) (name) }
                    }
                }
            }
            tbody {
                @for row in rows {
                    tr {
                        @for (column, cell) in row.iter().enumerate() {
                            @if column == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                        }
                    }
                }
            }
        }
    };
    let is_troubled = |run: &&Run| {
        let Run { errors, criteria, generator, .. } = run;
        text::ended_early(run).is_some()
            || !run.kept_its_rate()
            || !errors.is_empty()
            || !generator.warnings.is_empty()
            || criteria.iter().any(|verdict| verdict.holds)
    };
    html! {
        @for (run, name) in runs.iter().zip(names).filter(|(run, _)| is_troubled(run)) {
            section { h2.who { (name) } (problems(run)) }
        }
        (scrolling("Comparison", table))
    }
}

/// The rates that a search tried.
fn steps(search: &Search) -> Markup {
    let table = html! {
        table {
            caption { "The rates that were tried, in order." }
            thead {
                tr {
                    @for head in ["rate", "reached", "verdict", "p50", "p99"] { th scope="col" { (head) } }
                    th.words scope="col" { "because" }
                }
            }
            tbody {
                @for step in &search.steps {
                    tr {
                        th scope="row" { (count(step.rate)) "/s" }
                        td { (count(step.reached)) "/s" }
                        td { @if step.holds { "holds" } @else { strong.problem { "fails" } } }
                        td { (percentile(&step.response, 0)) }
                        td { (percentile(&step.response, 2)) }
                        td.words.long { (step.because) }
                    }
                }
            }
        }
    };
    scrolling("Steps of the search", table)
}

/// What came of a run, what was asked for, by what it was judged, and of which runs it consists.
fn tables(run: &Run) -> Markup {
    let latencies = html! {
        table {
            caption { "Latency: " (text::coverage(run)) "." }
            thead {
                tr {
                    td {}
                    @for percentile in PERCENTILES { th scope="col" { "p" (percentile) } }
                    @for head in ["max", "mean", "min", "of"] { th scope="col" { (head) } }
                }
            }
            tbody {
                @for (what, latency) in text::latencies(run).filter(|(_, latency)| latency.count > 0) {
                    tr {
                        th scope="row" { (what) }
                        @for number in 0..PERCENTILES.len() { td { (percentile(latency, number)) } }
                        @for time in [text::longest(latency), text::mean(latency), show_micros(latency.min_us)] {
                            td { (time) }
                        }
                        td { (HumanCount(latency.count)) }
                    }
                }
            }
        }
    };
    let criteria = html! {
        table {
            caption { "Failure criteria (--fail-if)" }
            thead { tr {
                    th scope="col" { "fails if" }
                    th.words scope="col" { "measured" }
                    th scope="col" { "verdict" }
                } }
            tbody {
                @for verdict in &run.criteria {
                    tr {
                        th scope="row" { (verdict.criterion) }
                        td.words { (verdict.figure) }
                        td { @if verdict.holds { strong.problem { "failed" } } @else { "passed" } }
                    }
                }
            }
        }
    };
    let parts = html! {
        table {
            caption { "The runs that were merged" }
            thead {
                tr {
                    th scope="col" { "run" }
                    @for head in ["host", "addresses"] { th.words scope="col" { (head) } }
                    @for head in ["replies", "replies/s", "errors"] { th scope="col" { (head) } }
                    @for head in ["measured from", "to"] { th scope="col" { (head) } }
                }
            }
            tbody {
                @for part in &run.parts {
                    tr {
                        th scope="row" { (part.name) }
                        td.words { (part.host) }
                        td.words { (part.addresses.join(", ")) }
                        td { (HumanCount(part.replies)) }
                        td { (count(part.rate)) }
                        td { (HumanCount(part.errors)) }
                        td { (text::when(&part.measured_from)) }
                        td { (text::when(&part.measured_to)) }
                    }
                }
            }
        }
    };
    html! {
        @if run.response.count > 0 { (scrolling("Latency", latencies)) }
        @if !run.backends.is_empty() { (scrolling("Backends", backends(run))) }
        @if !run.criteria.is_empty() { (scrolling("Criteria", criteria)) }
        @if !run.parts.is_empty() { (scrolling("Merged runs", parts)) }
        div.pair {
            (pairs("Results", &text::results(run)))
            (pairs("Settings and environment", &text::settings(run)))
        }
    }
}

/// Which servers answered.
fn backends(run: &Run) -> Markup {
    let rows = text::backends(run);
    html! {
        table {
            caption { "Which servers answered (--by-greeting)" }
            @for (number, row) in rows.iter().enumerate() {
                tr {
                    @for (column, cell) in row.iter().enumerate() {
                        @if number == 0 { th scope="col" { (cell) } }
                        @else if column == 0 { th scope="row" { (cell) } }
                        @else { td { (cell) } }
                    }
                }
            }
        }
    }
}

/// A text in which an address of IPv6 is broken between its groups, if it must be, and not within one.
fn whole_groups(text: &str) -> Markup {
    if !text.contains('[') {
        return html! { (text) };
    }
    html! { @for group in text.split_inclusive(':') { (group) @if group.ends_with(':') { wbr; } } }
}

fn pairs(caption: &str, figures: &[Figure]) -> Markup {
    html! {
        table.pairs {
            caption { (caption) }
            tbody {
                @for (what, figure) in figures { tr { th scope="row" { (what) } td.words { (whole_groups(figure)) } } }
            }
        }
    }
}

/// Everything that there is about a run, folded up.
fn all_figures(run: &Run, name: &str, among_others: bool) -> anyhow::Result<Markup> {
    let heat = if among_others { charts::heat_map(run)?.as_ref().map(figure).transpose()? } else { None };
    Ok(html! {
        details {
            summary { @if among_others { "All figures of " (name) } @else { "The report as text" } }
            @if among_others {
                (heat.unwrap_or_default())
                @if let Some(search) = &run.search { (steps(search)) }
                (tables(run))
            }
            (scrolling("Report as text", html! { pre { (text::text(run)?) } }))
            p.note {
                "Made by echoloop " (run.maker()) " on " (run.host.system) ", " (run.host.architecture) ", "
                (counted(run.host.processors, "processor")) ", " (text::when(&run.started)) "."
            }
        }
    })
}

/// What a line looks like, in the legend.
fn key(style: Style) -> Markup {
    html! {
        svg.key viewBox="0 0 28 10" aria-hidden="true" {
            line class=(format!("line {}", style.classes())) x1="1" x2="27" y1="5" y2="5" {}
        }
    }
}

/// A chart with its title, its legend and a sentence on what it shows.
fn figure(chart: &Chart) -> anyhow::Result<Markup> {
    let legend: Vec<_> = chart.legend().collect();
    let strengths = chart.heat.as_ref().map(Heat::legend).unwrap_or_default();
    Ok(html! {
        figure data-x=(chart.x.key()) data-y=(chart.y.key()) data-lines=(chart.values())
            data-names=[chart.heat.as_ref().map(|_| Heat::VALUES.join(","))] {
            figcaption {
                h2 { (chart.title) }
                p.note { (chart.note) }
                @if !legend.is_empty() {
                    ul.legend {
                        @for (name, style) in &legend { li { (key(*style)) span { (name) } " " output {} } }
                    }
                }
                @if !strengths.is_empty() {
                    ul.legend.strengths {
                        @for (strength, share) in strengths {
                            li {
                                svg.key viewBox="0 0 28 10" aria-hidden="true" {
                                    rect class=(format!("heat h{strength}")) width="28" height="10" {}
                                }
                                (share)
                            }
                        }
                    }
                }
            }
            div.wide { (PreEscaped(chart.draw((880, 300))?)) }
            div.narrow { (PreEscaped(chart.draw((380, 300))?)) }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Linear red, green and blue.
    type Colour = [f64; 3];

    /// How people see colours who lack one kind of cone, and all others (Machado, Oliveira and Fernandes, "A
    /// Physiologically-based Model for Simulation of Color Vision Deficiency", 2009).
    const VISIONS: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152_286, 1.052_583, -0.204_868], [0.114_503, 0.786_281, 0.099_216], [-0.003_882, -0.048_116, 1.051_998]],
        [[0.367_322, 0.860_646, -0.227_968], [0.280_085, 0.672_501, 0.047_413], [-0.011_820, 0.042_940, 0.968_881]],
        [[1.255_528, -0.076_749, -0.178_779], [-0.078_411, 0.930_809, 0.147_602], [0.004_733, 0.691_367, 0.303_900]],
    ];

    /// The colours that the style declares from `from` on.
    fn colours(from: &str) -> BTreeMap<&'static str, Colour> {
        let block = STYLE.split(from).nth(1).unwrap().split('}').next().unwrap();
        let declared = block.split("--").filter_map(|it| it.split_once(": #"));
        let channel = |hex: &str| {
            let value = f64::from(u8::from_str_radix(hex, 16).unwrap()) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        declared
            .map(|(name, hex)| {
                let hex = hex.split(';').next().unwrap();
                let colour = match hex.len() {
                    3 => [0, 1, 2].map(|at| channel(&hex[at..=at].repeat(2))),
                    _ => [0, 2, 4].map(|at| channel(&hex[at..at + 2])),
                };
                (name, colour)
            })
            .collect()
    }

    /// WCAG 2.2, "contrast ratio".
    fn contrast(one: Colour, other: Colour) -> f64 {
        let luminance = |[red, green, blue]: Colour| 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
        let (one, other) = (luminance(one), luminance(other));
        one.max(other) / one.min(other)
    }

    /// How different two colours look, in CIE 1976 L*a*b*.
    fn distance(one: Colour, other: Colour, vision: [[f64; 3]; 3]) -> f64 {
        let times = |matrix: [[f64; 3]; 3], it: Colour| {
            matrix.map(|row| row.iter().zip(it).map(|(factor, value)| factor * value).sum::<f64>().clamp(0.0, 1.1))
        };
        let lab = |colour| {
            let to_xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8730]];
            let [x, y, z] = times(to_xyz, times(vision, colour))
                .map(|it| if it > 0.008_856 { it.cbrt() } else { 7.787 * it + 16.0 / 116.0 });
            [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
        };
        lab(one).iter().zip(lab(other)).map(|(one, other)| (one - other).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn lines_are_told_apart_by_everybody() {
        for from in [":root {", "dark) {", "print {"] {
            let colours = colours(from);
            for (kind, count, least) in [('c', 8, 20.0), ('s', 4, 10.0)] {
                let lines: Vec<_> = (0..count).map(|number| colours[&*format!("{kind}{number}")]).collect();
                for (number, &line) in lines.iter().enumerate() {
                    for ground in ["page", "card", "gap"] {
                        let contrast = contrast(line, colours[ground]);
                        assert!(contrast >= 3.0, "{from} {kind}{number} on {ground}: {contrast}");
                    }
                    for (other, &second) in lines[..number].iter().enumerate() {
                        let apart =
                            VISIONS.map(|vision| distance(line, second, vision)).into_iter().fold(1e9, f64::min);
                        assert!(apart >= least, "{from} {kind}{number} and {kind}{other}: {apart}");
                    }
                }
            }
            for (text, ground) in
                [("ink", "page"), ("faint", "page"), ("faint", "card"), ("bad", "page"), ("bad", "card")]
            {
                assert!(contrast(colours[text], colours[ground]) >= 4.5, "{from} {text} on {ground}");
            }
        }
        // And by their dashes: no two are drawn alike.
        let dashes: Vec<_> = (1..8)
            .map(|number| STYLE.split(&format!(".d{number} {{ stroke-dasharray: ")).nth(1).unwrap().split(';').next())
            .collect();
        assert_eq!(dashes.iter().collect::<std::collections::BTreeSet<_>>().len(), 7);
    }
}
