//! Runs as a page: one file that holds everything, works without a network, in light and in dark, on a desk and on a
//! phone.
//!
//! Every chart is drawn twice, wide and narrow, and the page shows the one that fits: text that is scaled down with its
//! chart cannot be read.

use indicatif::HumanCount;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts::{self, Chart, Line};
use super::text;
use crate::bench::Run;
use crate::bench::latency::show_micros;

const STYLE: &str = include_str!("style.css");

/// The page.
///
/// # Errors
///
/// If a run's histogram is damaged, or a chart cannot be drawn.
pub(in crate::bench) fn page(runs: &[Run]) -> anyhow::Result<String> {
    let title = match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let mut figures = Vec::new();
    for chart in charts(runs)? {
        figures.push(figure(&chart)?);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "echoloop bench: " (title) }
                // Without it a browser asks for /favicon.ico.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    @match runs {
                        [run] => (summary(run)),
                        runs => (comparison(runs)),
                    }
                    @for figure in &figures { (figure) }
                    @for run in runs { (details(run)?) }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// The figures of one run that matter most.
fn summary(run: &Run) -> Markup {
    let config = &run.config;
    let pace = match config.rate {
        _ if run.search.is_some() => "looking for the highest rate".to_owned(),
        Some(rate) => format!("open loop, {} messages/s", text::count(rate)),
        None => format!("closed loop, depth {}", config.depth),
    };
    let cards = [
        ("replies/s", text::count(run.rate)),
        ("p50", show_micros(run.response.p50_us)),
        ("p99", show_micros(run.response.p99_us)),
        ("max", show_micros(run.response.max_us)),
        ("connections", format!("{} of {}", HumanCount(run.connections.opened), HumanCount(run.connections.asked))),
        ("errors", HumanCount(run.error_count()).to_string()),
    ];
    html! {
        p.lead {
            (config.address) ", " (text::sizes(config)) " messages, " (pace) ", " (run.started)
            @if run.interrupted { ", ended early" }
        }
        dl.cards {
            @for (what, figure) in &cards {
                div { dt { (what) } dd { (figure) } }
            }
        }
        @if let Some(search) = &run.search { p.answer { (text::answer(search)) } }
        @for error in &run.errors {
            p.problem { (HumanCount(error.count)) " " (error.kind) "; the first: " (error.first) }
        }
        @for warning in &run.generator.warnings { p.problem { "Warning: " (warning) } }
    }
}

/// Several runs, side by side.
fn comparison(runs: &[Run]) -> Markup {
    let rows = text::rows(runs);
    html! {
        div.scroll {
            table {
                @for (number, row) in rows.iter().enumerate() {
                    tr {
                        @for (column, cell) in row.iter().enumerate() {
                            @if number == 0 || column == 0 { th { (cell) } } @else { td { (cell) } }
                        }
                    }
                }
            }
        }
        p.note { "In brackets: the ratio to the first run." }
    }
}

/// Everything that the text report says.
fn details(run: &Run) -> anyhow::Result<Markup> {
    Ok(html! {
        details {
            summary { "All figures of " (run.name) }
            div.scroll { pre { (text::text(run)?) } }
            p.note {
                "Made by echoloop " (run.echoloop) " on " (run.host.system) ", " (run.host.architecture) ", "
                (run.host.processors) " processors, " (run.started) "."
            }
        }
    })
}

fn charts(runs: &[Run]) -> anyhow::Result<Vec<Chart>> {
    let mut all = vec![charts::throughput(runs), charts::latency_over_time(runs), charts::distribution(runs)?];
    all.extend(charts::latency_against_rate(runs));
    Ok(all)
}

/// A chart with its title, its legend and a sentence on what it shows.
fn figure(chart: &Chart) -> anyhow::Result<Markup> {
    Ok(html! {
        figure {
            figcaption {
                h2 { (chart.title) }
                p.note { (chart.note) }
                ul.legend {
                    @for Line { name, .. } in &chart.lines { li { (name) } }
                }
            }
            div.wide { (PreEscaped(chart.draw((880, 300))?)) }
            div.narrow { (PreEscaped(chart.draw((380, 300))?)) }
        }
    })
}
