//! Runs as text, for a terminal.

use std::fmt::Write;

use bytesize::ByteSize;
use hdrhistogram::Histogram;
use indicatif::HumanCount;

use crate::bench::latency::{PERCENTILES, micros, show_at_least, show_micros};
use crate::bench::{Cut, Outcomes, Run, Search, Settings, Step};
use crate::escape;

/// The width of the histogram's longest bar.
const BAR: u64 = 50;

/// The most rows of the histogram.
const ROWS: usize = 16;

/// A run, whole.
///
/// # Errors
///
/// If its histogram is damaged.
pub fn text(run: &Run) -> anyhow::Result<String> {
    let run = &printable_run(run)?;
    let mut out = String::new();
    headline(&mut out, run)?;
    percentiles(&mut out, run)?;
    histogram(&mut out, &run.response.decode()?)?;
    if let Some(watched) = &run.watched {
        writeln!(
            out,
            "\nprocess {}: {:.2} us of processor time per message; memory {} before, {} connected, {} at its peak: {:.0} \
             bytes per connection",
            watched.pid,
            watched.cpu_us_per_message,
            size(watched.resident_before),
            size(watched.resident_connected),
            size(watched.resident_peak),
            watched.resident_per_connection
        )?;
    }
    if let Some(search) = &run.search {
        writeln!(out, "\n{}", answer(search))?;
    }
    problems(&mut out, run)?;
    Ok(out)
}

/// What was done, and how much of it.
fn headline(out: &mut String, run: &Run) -> anyhow::Result<()> {
    let config = &run.config;
    let pace = match config.rate {
        _ if run.search.is_some() => "open loop, looking for the highest rate".to_owned(),
        Some(rate) => format!("open loop, {} messages/s", count(rate)),
        None => format!("closed loop, depth {}", config.depth),
    };
    let merged = if run.merged > 1 { format!(", {} runs merged", run.merged) } else { String::new() };
    writeln!(out, "{}: {} messages, {pace}{merged}\n", run.name, sizes(config))?;

    let connections = &run.connections;
    let mut parts = vec![format!("{} of {} opened", HumanCount(connections.opened), HumanCount(connections.asked))];
    if connections.idle_asked > 0 {
        let (opened, asked) = (HumanCount(connections.idle_opened), HumanCount(connections.idle_asked));
        parts.push(format!("{opened} of {asked} idle ones"));
    }
    let all = connections.opened as f64 + connections.idle_opened as f64;
    parts.push(format!("{}/s", count(all / connections.opening_seconds.max(1e-6))));
    if connections.connect.count > 0 {
        parts.push(format!(
            "connecting took p50 {}, p99 {}, max {}",
            show_micros(connections.connect.p50_us),
            show_micros(connections.connect.p99_us),
            show_micros(connections.connect.max_us)
        ));
    }
    if connections.reopened > 0 {
        let rate = connections.reopened as f64 / run.seconds.max(1e-6);
        parts.push(format!("{} reopened ({}/s)", HumanCount(connections.reopened), count(rate)));
    }
    if let Some(closing) = connections.closing.as_ref().filter(|closing| closing.count > 0) {
        parts.push(format!(
            "closing took p50 {}, p99 {}, max {}",
            show_micros(closing.p50_us),
            show_micros(closing.p99_us),
            show_micros(closing.max_us)
        ));
        if connections.never_closed > 0 {
            parts.push(format!("{} were not closed by the server", HumanCount(connections.never_closed)));
        }
    }
    writeln!(out, "connections  {}", parts.join(", "))?;

    let messages = &run.messages;
    let mut parts =
        vec![format!("{} replies in {:.2} s: {}/s", HumanCount(messages.replies), run.seconds, count(run.rate))];
    parts.push(format!("{}/s each way", size(run.bytes_per_second as u64)));
    if let Some(datagrams) = &run.datagrams {
        let share = 100.0 * datagrams.lost as f64 / messages.sent.max(1) as f64;
        parts.push(format!("{} lost ({share:.3} %)", HumanCount(datagrams.lost)));
        parts.push(format!("{} reordered", HumanCount(datagrams.reordered)));
        parts.push(format!("{} came again or too late", HumanCount(datagrams.duplicates)));
    }
    let unanswered = if run.datagrams.is_some() { 0 } else { messages.unanswered };
    for (number, what) in [(messages.missed, "missed"), (unanswered, "never answered")] {
        if number > 0 || (what == "missed" && run.service.is_some()) {
            parts.push(format!("{} {what}", HumanCount(number)));
        }
    }
    writeln!(out, "messages     {}", parts.join(", "))?;
    account(out, run)?;
    if let Some(cut) = run.cut.filter(|cut| *cut != Cut::Enough) {
        let of = match (config.duration, config.messages) {
            (Some(duration), _) => format!("{:.2} of {duration:.2} s", run.seconds),
            (None, Some(all)) => format!("{} of {} messages", HumanCount(run.outcomes.due), HumanCount(all)),
            (None, None) => format!("{:.2} s", run.seconds),
        };
        let why = match cut {
            Cut::NoConnection => "no connection was left, or nobody answered any more",
            _ => "by a signal",
        };
        writeln!(out, "             ended early, after {of}: {why}")?;
    }
    Ok(())
}

/// What became of the messages that were due, where that was not simply an answer.
fn account(out: &mut String, run: &Run) -> anyhow::Result<()> {
    let Outcomes { due, answered, answered_late, unanswered, failed, never_sent } = run.outcomes;
    if answered == due && run.service.is_none() {
        return Ok(());
    }
    let mut parts = vec![format!("{} answered in time", HumanCount(answered))];
    for (number, what) in [
        (answered_late, "answered late"),
        (unanswered, "unanswered"),
        (failed, "failed with their connections"),
        (never_sent.connection_gone, "never sent: connection gone"),
        (never_sent.generator_behind, "never sent: generator behind"),
        (never_sent.end_reached, "never sent: end reached"),
    ] {
        if number > 0 {
            parts.push(format!("{} {what}", HumanCount(number)));
        }
    }
    writeln!(out, "account      {} due: {}", HumanCount(due), parts.join(", "))?;
    if let Some(rate) = run.rate_kept.as_ref().filter(|rate| !rate.kept) {
        writeln!(out, "             {}", rate.text)?;
    }
    Ok(())
}

fn percentiles(out: &mut String, run: &Run) -> anyhow::Result<()> {
    if run.response.count == 0 {
        let nothing = if run.outcomes.due == 0 { "no message was due" } else { "no reply came" };
        writeln!(out, "\n{nothing}")?;
        return Ok(());
    }
    write!(out, "\n{:<14}", "latency")?;
    for percentile in PERCENTILES {
        write!(out, "{:>11}", format!("p{percentile}"))?;
    }
    writeln!(out, "{:>11}{:>11}", "max", "mean")?;
    let response = if run.service.is_some() { "response time" } else { "round trip" };
    for (what, latency) in [(response, Some(&run.response)), ("service time", run.service.as_ref())] {
        let Some(latency) = latency.filter(|latency| latency.count > 0) else { continue };
        write!(out, "{what:<14}")?;
        for (_, time, at_least) in latency.percentiles() {
            write!(out, "{:>11}", show_at_least(time, at_least))?;
        }
        for (time, name) in [(latency.max_us, "max_us"), (latency.mean_us, "mean_us")] {
            write!(out, "{:>11}", show_at_least(time, latency.is_lower_bound(name)))?;
        }
        writeln!(out)?;
    }
    let due = run.outcomes.due;
    let of = if run.response.count == due { "all".to_owned() } else { HumanCount(run.response.count).to_string() };
    write!(out, "              {of} of {} messages that were due are in it", HumanCount(due))?;
    match run.response.bounds {
        0 => writeln!(out),
        bounds => {
            writeln!(out, "; {} were not answered: they took at least (>) as long as was waited", HumanCount(bounds))
        }
    }?;
    Ok(())
}

/// A small histogram with logarithmic rows: two to an octave, or fewer if there are many.
fn histogram(out: &mut String, histogram: &Histogram<u64>) -> anyhow::Result<()> {
    if histogram.is_empty() {
        return Ok(());
    }
    let (low, high) = (histogram.min().max(1) as f64, histogram.max().max(1) as f64);
    let octaves = (high / low).log2().max(0.5);
    let per_octave = if octaves * 2.0 <= ROWS as f64 { 2.0 } else { ROWS as f64 / octaves };
    let rows = (octaves * per_octave).floor() as u32 + 1;
    let bound = |row: u32| (low * 2f64.powf(f64::from(row) / per_octave)) as u64;
    let counts: Vec<u64> = (0..rows)
        .map(|row| {
            let below = if row + 1 == rows { u64::MAX } else { bound(row + 1) };
            // Values are told apart as far as the histogram does; each of its cells belongs to one row.
            histogram
                .iter_recorded()
                .filter(|cell| (bound(row)..below).contains(&cell.value_iterated_to().min(histogram.max())))
                .map(|cell| cell.count_since_last_iteration())
                .sum()
        })
        .collect();
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    writeln!(out)?;
    for (row, &number) in counts.iter().enumerate() {
        // A row that is not empty shows, however few there are in it.
        let length = (number * BAR).div_ceil(most) as usize;
        let share = 100.0 * number as f64 / histogram.len() as f64;
        writeln!(
            out,
            "from {:>8}  {:<width$} {share:6.2} %",
            show_micros(micros(bound(row as u32))),
            "#".repeat(length),
            width = BAR as usize
        )?;
    }
    Ok(())
}

/// What went wrong, and what to keep in mind.
fn problems(out: &mut String, run: &Run) -> anyhow::Result<()> {
    if !run.errors.is_empty() {
        writeln!(out, "\nerrors")?;
        for error in &run.errors {
            writeln!(out, "  {} {}; the first: {}", HumanCount(error.count), error.kind, error.first)?;
        }
    }
    for mismatch in run.mismatches.iter().skip(1) {
        writeln!(out, "  {mismatch}")?;
    }
    for warning in &run.generator.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}

/// One step of a search, in a line.
pub fn step_line(step: &Step) -> String {
    let verdict = if step.holds { "holds" } else { "fails" };
    format!("{:>12}/s {verdict}: {}", count(step.rate), step.because)
}

/// What a search found.
pub(super) fn answer(search: &Search) -> String {
    let criterion = &search.criterion;
    match (search.holds_at, search.fails_at) {
        (Some(holds), Some(fails)) => format!(
            "{criterion} holds up to {}/s, and no longer at {}/s (margin {:.1} %)",
            count(holds),
            count(fails),
            100.0 * (fails / holds - 1.0)
        ),
        (Some(holds), None) => format!("{criterion} holds at {}/s; where it ends was not found", count(holds)),
        (None, Some(fails)) => format!("{criterion} does not hold, not even at {}/s", count(fails)),
        (None, None) => format!("{criterion}: no rate was tried to the end"),
    }
}

/// Runs side by side, with ratios to the first.
///
/// # Errors
///
/// If a run cannot be shown.
pub fn comparison(runs: &[Run]) -> anyhow::Result<String> {
    let runs = runs.iter().map(printable_run).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(align(&rows(&runs)))
}

/// The cells of [`comparison`]: first the runs' names, then a figure a row.
pub(super) fn rows(runs: &[Run]) -> Vec<Vec<String>> {
    let row = |what: &str, figure: &dyn Fn(&Run) -> Option<f64>, show: &dyn Fn(f64) -> String| -> Vec<String> {
        let first = runs.first().and_then(figure);
        let mut cells = vec![what.to_owned()];
        for (number, run) in runs.iter().enumerate() {
            cells.push(match (figure(run), first) {
                (None, _) => "-".to_owned(),
                (Some(value), Some(first)) if number > 0 && first > 0.0 => {
                    format!("{} ({:.2})", show(value), value / first)
                }
                (Some(value), _) => show(value),
            });
        }
        cells
    };
    let whole = |number: f64| HumanCount(number as u64).to_string();
    let mut rows = vec![std::iter::once(String::new()).chain(runs.iter().map(|run| run.name.clone())).collect()];
    rows.push(row("replies/s", &|run| Some(run.rate), &count));
    rows.push(row("bytes/s", &|run| Some(run.bytes_per_second), &|bytes| size(bytes as u64).to_string()));
    for (number, percentile) in PERCENTILES.iter().enumerate() {
        let time = move |run: &Run| (run.response.count > 0).then(|| run.response.percentiles()[number].1);
        rows.push(row(&format!("p{percentile}"), &time, &show_micros));
    }
    rows.push(row("max", &|run| (run.response.count > 0).then_some(run.response.max_us), &show_micros));
    rows.push(row("connections", &|run| Some(run.connections.opened as f64), &whole));
    rows.push(row("errors", &|run| Some(run.error_count() as f64), &whole));
    if runs.iter().any(|run| run.service.is_some()) {
        rows.push(row("missed", &|run| run.service.as_ref().map(|_| run.messages.missed as f64), &whole));
    }
    if runs.iter().any(|run| run.watched.is_some()) {
        let cpu = |run: &Run| run.watched.as_ref().map(|watched| watched.cpu_us_per_message);
        rows.push(row("cpu/message", &cpu, &show_micros));
        let memory = |run: &Run| run.watched.as_ref().map(|watched| watched.resident_per_connection);
        rows.push(row("memory/connection", &memory, &|bytes| format!("{bytes:.0} B")));
    }
    if runs.iter().any(|run| run.search.is_some()) {
        rows.push(row("highest rate", &|run| run.search.as_ref()?.holds_at, &count));
    }
    rows
}

/// Rows of cells as columns, the first one to the left and the others to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A text that stays a text on a terminal: files come from anywhere.
pub fn printable(text: &str) -> String {
    escape::text(text).to_string()
}

/// A run in which every text is [`printable`].
fn printable_run(run: &Run) -> anyhow::Result<Run> {
    fn escape_all(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = printable(text),
            serde_json::Value::Array(values) => values.iter_mut().for_each(escape_all),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(escape_all),
            _ => {}
        }
    }
    let mut json = serde_json::to_value(run)?;
    escape_all(&mut json);
    Ok(serde_json::from_value(json)?)
}

/// The sizes of a run's messages.
pub(super) fn sizes(config: &Settings) -> String {
    match (config.smallest, config.largest) {
        (smallest, largest) if smallest == largest => size(smallest).to_string(),
        (smallest, largest) => format!("{} to {}", size(smallest), size(largest)),
    }
}

fn size(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().iec()
}

/// A number as one reads it: whole and with separators if it is large.
pub(super) fn count(number: f64) -> String {
    if number >= 100.0 || number == 0.0 {
        HumanCount(number.round() as u64).to_string()
    } else {
        format!("{number:.1}")
    }
}
