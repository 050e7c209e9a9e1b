//! Runs as a page: one file that holds everything, works without a network, in light and in dark, on a desk, on a phone
//! and on paper.
//!
//! Every chart is drawn twice, wide and narrow, and the page shows the one that fits: text that is scaled down with its
//! chart cannot be read. Without its script the page shows all that it has; the script adds values at the pointer.

use indicatif::HumanCount;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts;
use super::plot::{Chart, Style};
use super::text::{self, Figure, NONE, count, percentile, plural};
use crate::bench::latency::{PERCENTILES, show_micros};
use crate::bench::merge::distinct_names;
use crate::bench::{Outcomes, Run, Search};

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
        runs => format!("{} runs", runs.len()),
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
        @if let Some(rate) = run.rate_kept.as_ref().filter(|rate| !rate.kept) { p.problem { (rate.text) } }
        @for error in &run.errors {
            p.problem { (error.kind.counted(error.count)) "; the first: " (error.first) }
        }
        @for mismatch in run.mismatches.iter().skip(1) { p.problem { (mismatch) } }
        @for verdict in run.criteria.iter().filter(|verdict| verdict.holds) {
            p.problem { "Not good enough: " (verdict.criterion) " holds: " (verdict.figure) }
        }
        @for warning in &run.generator.warnings { p.problem { "Warning: " (warning) } }
    }
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
                    @for head in ["rate", "reached", "verdict", "p50", "p99", "because"] { th scope="col" { (head) } }
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
                        td.words { (step.because) }
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
            caption { "What must not be so (--fail-if)" }
            thead { tr { @for head in ["criterion", "figure", "verdict"] { th scope="col" { (head) } } } }
            tbody {
                @for verdict in &run.criteria {
                    tr {
                        th scope="row" { (verdict.criterion) }
                        td.words { (verdict.figure) }
                        td { @if verdict.holds { strong.problem { "it is: failed" } } @else { "it is not: passed" } }
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
                    @for head in ["run", "host", "addresses", "replies", "replies/s", "errors", "measured from", "to"] {
                        th scope="col" { (head) }
                    }
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
                        td.words { (text::when(&part.measured_from)) }
                        td.words { (text::when(&part.measured_to)) }
                    }
                }
            }
        }
    };
    html! {
        @if run.response.count > 0 { (scrolling("Latency", latencies)) }
        @if !run.criteria.is_empty() { (scrolling("Criteria", criteria)) }
        @if !run.parts.is_empty() { (scrolling("Merged runs", parts)) }
        div.pair {
            (pairs("What came of it", &text::results(run)))
            (pairs("What was asked for, where and when", &text::settings(run)))
        }
    }
}

fn pairs(caption: &str, figures: &[Figure]) -> Markup {
    html! {
        table.pairs {
            caption { (caption) }
            tbody {
                @for (what, figure) in figures { tr { th scope="row" { (what) } td.words { (figure) } } }
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
                "Made by echoloop " (run.echoloop) " on " (run.host.system) ", " (run.host.architecture) ", "
                (plural(run.host.processors, "processor", "processors")) ", " (text::when(&run.started)) "."
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
    let scripted = !legend.is_empty();
    Ok(html! {
        figure data-x=[scripted.then_some(chart.x.key())] data-y=[scripted.then_some(chart.y.key())]
            data-lines=[scripted.then(|| chart.values())] {
            figcaption {
                h2 { (chart.title) }
                p.note { (chart.note) }
                @if scripted {
                    ul.legend {
                        @for (name, style) in &legend { li { (key(*style)) span { (name) } " " output {} } }
                    }
                }
            }
            div.wide { (PreEscaped(chart.draw((880, 300))?)) }
            div.narrow { (PreEscaped(chart.draw((380, 300))?)) }
        }
    })
}
