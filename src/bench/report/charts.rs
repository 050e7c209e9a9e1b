//! The charts of the page: which lines each of them has.
//!
//! A run has one colour in all of them, and a dash of its own; its service time is dotted. Where there is one run, its
//! percentiles are told apart by shade. [`super::plot`] draws them.

use indicatif::HumanCount;

use super::plot::{Axis, Bars, Chart, Heat, Line, MINUTES, Mark, Style};

use crate::bench::latency::{Latency, PERCENTILES, micros};
use crate::bench::{Criterion, Interval, Run};
use crate::count::counted;

/// The farthest to the right that a distribution goes: 99.9999 %.
const MOST_NINES: f64 = 6.0;

/// A last interval that is shorter than this says nothing about a rate, in seconds.
const SHORT: f64 = 0.1;

/// Rows of the heat map for each decade of latency, and of the histogram.
const PER_DECADE: f64 = 8.0;

/// The most columns of a heat map; more intervals are added up.
const COLUMNS: usize = 110;

/// The most gaps that are told in words.
const GAPS: usize = 3;

/// A figure of a set of latencies, and its name.
type Percentile = (&'static str, fn(&Latency) -> f64);

const SHOWN: [Percentile; 4] = [
    ("p50", |latency| latency.p50_us),
    ("p90", |latency| latency.p90_us),
    ("p99", |latency| latency.p99_us),
    ("max", |latency| latency.max_us),
];

/// All charts of a page about these runs, which have these names.
pub(super) fn all(runs: &[Run], names: &[String]) -> anyhow::Result<Vec<Chart>> {
    // Of one run everything is, so lines need not say it.
    let names = if runs.len() == 1 { &["replies".to_owned()] } else { names };
    let mut all = vec![throughput(runs, names), latency_over_time(runs, names)];
    if let [run] = runs {
        all.extend(heat_map(run)?);
    }
    all.push(distribution(runs, names)?);
    all.extend(histogram(runs, names)?);
    all.extend(errors_over_time(runs, names));
    all.extend(latency_against_rate(runs, names)?);
    let until = runs.iter().flat_map(|run| &run.timeline).map(|it| it.at + it.seconds).fold(0.0, f64::max);
    for chart in all.iter_mut().filter(|chart| chart.x == Axis::Seconds) {
        chart.until = until;
    }
    Ok(all)
}

/// How many replies came in each second.
fn throughput(runs: &[Run], names: &[String]) -> Chart {
    let lines = runs.iter().zip(names).enumerate().map(|(number, (run, name))| {
        let points =
            whole(run).map(|interval| (middle(interval), interval.replies as f64 / interval.seconds.max(1e-9)));
        Line::new(name.clone(), Style::Run(number), vec![points.collect()])
    });
    Chart {
        title: "Throughput over time".to_owned(),
        note: "Replies per second, in intervals of one second. A dip is a pause, in the server or in the load."
            .to_owned()
            + &tell_gaps(runs, names),
        lines: lines.collect(),
        shaded: shaded(runs),
        ..Chart::new(Axis::Seconds, Axis::Rate)
    }
}

/// The response time's percentiles of each second.
fn latency_over_time(runs: &[Run], names: &[String]) -> Chart {
    let (note, lines) = match runs {
        [run] => (
            "Percentiles of the response times in each second.",
            SHOWN
                .iter()
                .enumerate()
                .map(|(number, (name, figure))| Line::new(*name, Style::Shade(number), over_time(run, *figure)))
                .collect(),
        ),
        runs => (
            "The 99th percentile of the response times in each second.",
            runs.iter()
                .zip(names)
                .enumerate()
                .map(|(number, (run, name))| Line::new(name, Style::Run(number), over_time(run, SHOWN[2].1)))
                .collect(),
        ),
    };
    // Without any latency nothing is drawn, and nothing shaded.
    let nothing = runs.iter().all(|run| run.timeline.iter().all(|interval| interval.response.count == 0));
    Chart {
        title: "Latency over time".to_owned(),
        note: if nothing { note.to_owned() } else { note.to_owned() + &tell_gaps(runs, names) },
        lines,
        shaded: shaded(runs),
        ..Chart::new(Axis::Seconds, Axis::Latency)
    }
}

/// A figure second by second, in pieces: where there is none, the line has a gap.
fn over_time(run: &Run, figure: fn(&Latency) -> f64) -> Vec<Vec<(f64, f64)>> {
    let mut pieces = vec![Vec::new()];
    for interval in &run.timeline {
        if interval.response.count == 0 {
            pieces.push(Vec::new());
        } else if let Some(piece) = pieces.last_mut() {
            piece.push((middle(interval), figure(&interval.response)));
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// When a run had no reply at all, from and to.
fn gaps(run: &Run) -> Vec<(f64, f64)> {
    let mut gaps: Vec<(f64, f64)> = Vec::new();
    let empty = whole(run).filter(|interval| interval.replies == 0 && interval.response.count == 0);
    for interval in empty {
        let end = interval.at + interval.seconds;
        match gaps.last_mut() {
            Some((_, last)) if interval.at - *last < SHORT => *last = end,
            _ => gaps.push((interval.at, end)),
        }
    }
    gaps
}

/// What is shaded. Of several runs the gaps would hide each other.
fn shaded(runs: &[Run]) -> Vec<(f64, f64)> {
    if let [run] = runs { gaps(run) } else { Vec::new() }
}

fn tell_gaps(runs: &[Run], names: &[String]) -> String {
    let mut told = String::new();
    for (run, name) in runs.iter().zip(names) {
        let gaps = gaps(run);
        let who = if runs.len() == 1 { String::new() } else { format!(" of {name}") };
        let end = run.timeline.last().map_or(0.0, |interval| interval.at + interval.seconds);
        let list: Vec<_> = gaps
            .iter()
            .take(GAPS)
            .map(|(from, to)| format!("{} to {}", moment(*from, end), moment(*to, end)))
            .collect();
        let more = gaps.len().saturating_sub(GAPS);
        let more = if more > 0 { format!(", and {}", counted(more, "more time")) } else { String::new() };
        if !list.is_empty() {
            told.push_str(&format!(" No reply{who} came from {}{more}.", list.join(", from ")));
        }
    }
    if !told.is_empty() && runs.len() == 1 {
        told.push_str(" That is shaded.");
    }
    told
}

/// A moment of a run that ends then, as the axis has it.
fn moment(at: f64, end: f64) -> String {
    match end {
        ..10.0 => format!("{at:.1} s"),
        10.0..=MINUTES => format!("{at:.0} s"),
        _ => Axis::Seconds.tick(at, end),
    }
}

/// All response times of a run second by second: the darker, the more of that second's replies took so long.
pub(super) fn heat_map(run: &Run) -> anyhow::Result<Option<Chart>> {
    if run.timeline.len() < 2 || run.response.count == 0 {
        return Ok(None);
    }
    let together = run.timeline.len().div_ceil(COLUMNS);
    let mut columns = Vec::new();
    for intervals in run.timeline.chunks(together) {
        let (Some(first), Some(last)) = (intervals.first(), intervals.last()) else { continue };
        let mut cells: Vec<(i32, u64)> = Vec::new();
        for interval in intervals {
            for cell in interval.response.decode()?.iter_recorded() {
                let row = row(micros(cell.value_iterated_to()));
                match cells.iter_mut().find(|(there, _)| *there == row) {
                    Some((_, count)) => *count += cell.count_since_last_iteration(),
                    None => cells.push((row, cell.count_since_last_iteration())),
                }
            }
        }
        let all: u64 = cells.iter().map(|(_, count)| count).sum();
        let cells =
            cells.into_iter().map(|(row, count)| (bound(row), bound(row + 1), count as f64 / all.max(1) as f64));
        columns.push((first.at, last.at + last.seconds, cells.collect()));
    }
    Ok(Some(Chart {
        title: "All latencies over time".to_owned(),
        note:
            "Each column is a second or more, each cell a range of response times: the stronger its colour, the larger \
               the share of that column's replies that took so long. Rare ones are visible too."
                .to_owned(),
        heat: Some(Heat { columns }),
        ..Chart::new(Axis::Seconds, Axis::Latency)
    }))
}

/// Which row of a heat map, or bar of a histogram, a time belongs to.
fn row(micros: f64) -> i32 {
    (micros.max(0.001).log10() * PER_DECADE).floor() as i32
}

/// Where a row begins.
fn bound(row: i32) -> f64 {
    10f64.powf(f64::from(row) / PER_DECADE)
}

/// The distribution of latencies, on HdrHistogram's axis.
fn distribution(runs: &[Run], names: &[String]) -> anyhow::Result<Chart> {
    let mut lines = Vec::new();
    for (number, (run, name)) in runs.iter().zip(names).enumerate() {
        let name = |what: &str| if runs.len() == 1 { what.to_owned() } else { format!("{name}: {what}") };
        let response = if run.service.is_some() { "response time" } else { "round trip" };
        lines.push(Line::new(name(response), Style::Run(number), vec![quantiles(&run.response)?]));
        if let Some(service) = &run.service {
            lines.push(Line::new(name("service time"), Style::Service(number), vec![quantiles(service)?]));
        }
    }
    Ok(Chart {
        title: "Latency by percentile".to_owned(),
        note: "The time within which that share of the replies came. Each step to the right is one more nine: the \
               slowest tenth, hundredth, thousandth."
            .to_owned()
            + &tell_bounds(runs),
        lines,
        ..Chart::new(Axis::Nines, Axis::Latency)
    })
}

/// That what was never answered is drawn as if it had been answered when it was given up.
fn tell_bounds(runs: &[Run]) -> String {
    match runs.iter().map(|run| run.response.bounds).sum::<u64>() {
        0 => String::new(),
        1 => " One message was never answered: it is drawn at the time for which its reply was waited for.".to_owned(),
        bounds => format!(
            " {} messages were never answered: they are drawn at the time for which their replies were waited for.",
            HumanCount(bounds)
        ),
    }
}

fn quantiles(latency: &Latency) -> anyhow::Result<Vec<(f64, f64)>> {
    let histogram = latency.decode()?;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in histogram.iter_quantiles(10) {
        let nines = -(1.0 - step.quantile_iterated_to()).max(10f64.powf(-MOST_NINES)).log10();
        // The last of them is 100 %, which is nowhere on this axis: it is drawn where the count ends it.
        let last = (histogram.len() as f64).log10().min(MOST_NINES);
        points.push((nines.min(last), micros(step.value_iterated_to().min(histogram.max()))));
    }
    Ok(points)
}

/// How many of the replies took how long.
fn histogram(runs: &[Run], names: &[String]) -> anyhow::Result<Option<Chart>> {
    let mut bars = Vec::new();
    for (number, (run, name)) in runs.iter().zip(names).enumerate() {
        let histogram = run.response.decode()?;
        let mut shares: Vec<(f64, f64, f64)> = Vec::new();
        let mut last = None;
        for cell in histogram.iter_recorded() {
            let row = row(micros(cell.value_iterated_to()));
            let share = 100.0 * cell.count_since_last_iteration() as f64 / histogram.len().max(1) as f64;
            match shares.last_mut() {
                Some((_, _, sum)) if last == Some(row) => *sum += share,
                _ => shares.push((bound(row), bound(row + 1), share)),
            }
            last = Some(row);
        }
        if !shares.is_empty() {
            let name = if runs.len() == 1 { "messages".to_owned() } else { name.clone() };
            bars.push(Bars { name, style: Style::Run(number), bars: shares });
        }
    }
    Ok((!bars.is_empty()).then(|| Chart {
        title: "Histogram of latencies".to_owned(),
        note: "What share of the messages took how long. Each bar covers times a third longer than the one before it."
            .to_owned()
            + &tell_bounds(runs),
        bars,
        ..Chart::new(Axis::Latency, Axis::Share)
    }))
}

/// Errors in each second, if there were any.
fn errors_over_time(runs: &[Run], names: &[String]) -> Option<Chart> {
    if !runs.iter().flat_map(|run| &run.timeline).any(|interval| interval.errors > 0) {
        return None;
    }
    let lines = runs.iter().zip(names).enumerate().map(|(number, (run, name))| {
        let points = run.timeline.iter().map(|interval| (middle(interval), interval.errors as f64));
        let name = if runs.len() == 1 { "errors" } else { name };
        Line::new(name, Style::Run(number), vec![points.collect()])
    });
    Some(Chart {
        title: "Errors over time".to_owned(),
        note: "Connections that failed, and wrong bytes, in each second.".to_owned(),
        lines: lines.collect(),
        ..Chart::new(Axis::Seconds, Axis::Count)
    })
}

/// The response time at each rate that was tried, if one was looked for.
fn latency_against_rate(runs: &[Run], names: &[String]) -> anyhow::Result<Option<Chart>> {
    let mut chart = Chart {
        title: "Latency against rate".to_owned(),
        note:
            "The response time at each rate that was tried: a dot where the criterion held, a cross where it did not. \
               Where it turns up, the server is at its limit."
                .to_owned(),
        ..Chart::new(Axis::Rate, Axis::Latency)
    };
    for (number, (run, name)) in runs.iter().zip(names).enumerate() {
        let Some(search) = &run.search else { continue };
        let limit = search.criterion.parse::<Criterion>().ok().and_then(|criterion| criterion.time_limit());
        let (judged, limit) = limit.map_or((99.0, None), |(percentile, limit)| (percentile, Some(limit)));
        let name = |what: &str| if runs.len() == 1 { what.to_owned() } else { format!("{name}: {what}") };
        let mut shown = vec![(judged, Style::Run(number))];
        if judged != PERCENTILES[0] {
            shown.insert(0, (PERCENTILES[0], Style::Beside(number)));
        }
        for (percentile, style) in shown {
            // A rate that was tried twice is shown as it was the second time.
            let mut points: Vec<(f64, f64)> = Vec::new();
            let mut marks: Vec<Mark> = Vec::new();
            for step in search.steps.iter().filter(|step| step.response.count > 0) {
                let time = micros(step.response.decode()?.value_at_percentile(percentile));
                points.retain(|(rate, _)| *rate != step.rate);
                points.push((step.rate, time));
                if percentile == judged {
                    marks.retain(|mark| mark.at.0 != step.rate);
                    marks.push(Mark { at: (step.rate, time), holds: step.holds });
                }
            }
            points.sort_by(|(left, _), (right, _)| left.total_cmp(right));
            let what = if percentile == 100.0 { "max".to_owned() } else { format!("p{percentile}") };
            chart.lines.push(Line { marks, ..Line::new(name(&what), style, vec![points]) });
        }
        if let Some(limit) = limit {
            // One that several runs have is drawn once.
            let criterion = (limit, search.criterion.clone());
            if !chart.limits.contains(&criterion) {
                chart.limits.push(criterion);
            }
        }
    }
    Ok((!chart.lines.is_empty()).then_some(chart))
}

/// The intervals that are long enough to say something about a rate.
fn whole(run: &Run) -> impl Iterator<Item = &Interval> {
    run.timeline.iter().filter(|interval| interval.seconds >= SHORT || run.timeline.len() == 1)
}

fn middle(interval: &Interval) -> f64 {
    interval.at + interval.seconds / 2.0
}
