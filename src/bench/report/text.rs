//! Runs as text, for a terminal of 80 columns.

use std::cmp::Reverse;
use std::fmt::Write;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use indicatif::HumanCount;

use crate::bench::latency::{Latency, PERCENTILES, micros, show_at_least, show_micros};
use crate::bench::merge::distinct_names;
use crate::bench::{Backend, Cut, Outcomes, Run, Search, Settings, Step};
use crate::count::counted;
use crate::escape;
pub(super) use crate::values::show_number as count;

/// The width that everything fits.
const WIDTH: usize = 80;

/// The width of the histogram's longest bar.
const BAR: u64 = 50;

/// The most rows of the histogram.
const ROWS: usize = 16;

/// Where the second column of the first lines begins.
const INDENT: usize = 13;

/// Runs that stand side by side; more are shown below.
const SIDE_BY_SIDE: usize = 3;

/// A space at which no line is broken.
const KEEP: char = '\u{a0}';

/// What a figure is that nobody knows.
pub(super) const NONE: &str = "-";

/// A figure of a run, and what it is called.
pub(super) type Figure = (&'static str, String);

/// A row of the comparison that counts an outcome.
type OutcomeRow = (&'static str, fn(&Outcomes) -> u64);

/// A run, whole.
///
/// # Errors
///
/// If its histogram is damaged.
pub fn text(run: &Run) -> anyhow::Result<String> {
    let run = &printable_run(run)?;
    let mut out = String::new();
    headline(&mut out, run);
    percentiles(&mut out, run)?;
    histogram(&mut out, &run.response.decode()?)?;
    if let Some(watched) = &run.watched {
        let memory = [
            format!("memory {} before", size(watched.resident_before)),
            format!("{} connected", size(watched.resident_connected)),
            format!("{} at its peak", size(watched.resident_peak)),
        ];
        let text = format!(
            "process {}: {:.2} us of processor time per message; {}: {} per connection",
            watched.pid,
            watched.cpu_us_per_message,
            joined(&memory),
            counted(watched.resident_per_connection.round().max(0.0) as u64, "byte")
        );
        out.push('\n');
        wrap(&mut out, "", &text);
    }
    if let Some(search) = &run.search {
        out.push('\n');
        wrap(&mut out, "", &answer(search));
    }
    if !run.backends.is_empty() {
        out.push('\n');
        out.push_str(&table(&backends(run)));
    }
    parts(&mut out, run);
    problems(&mut out, run);
    Ok(out)
}

/// What was done, and how much of it.
fn headline(out: &mut String, run: &Run) {
    let merged = if run.merged > 1 { format!(", {} runs merged", run.merged) } else { String::new() };
    wrap(out, "", &format!("{}: {} messages, {}{merged}", run.name, sizes(&run.config), pace(run)));
    // A name has not told yet which of its addresses it was.
    if !run.addresses.is_empty() && run.addresses != [run.config.address.as_str()] {
        wrap(out, "", &format!("{} is {}", run.config.address, run.addresses.join(", ")));
    }
    out.push('\n');

    let connections = &run.connections;
    let mut list = vec![format!("{} of {} opened", HumanCount(connections.opened), HumanCount(connections.asked))];
    if connections.idle_asked > 0 {
        let (opened, asked) = (HumanCount(connections.idle_opened), HumanCount(connections.idle_asked));
        list.push(format!("{opened} of {asked} idle ones"));
    }
    let all = connections.opened as f64 + connections.idle_opened as f64;
    list.push(format!("{}/s", count(all / connections.opening_seconds.max(1e-6))));
    if connections.connect.count > 0 {
        list.push(format!("connecting took p50 {}", percentile(&connections.connect, 0)));
        if percentile(&connections.connect, 2) != NONE {
            list.push(format!("p99 {}", percentile(&connections.connect, 2)));
        }
        list.push(format!("max {}", show_micros(connections.connect.max_us)));
    }
    if connections.reopened > 0 {
        let rate = connections.reopened as f64 / run.seconds.max(1e-6);
        list.push(format!("{} reopened ({}/s)", HumanCount(connections.reopened), count(rate)));
    }
    if let Some(closing) = connections.closing.as_ref().filter(|closing| closing.count > 0) {
        list.push(format!("closing took p50 {}", percentile(closing, 0)));
        list.push(format!("max {}", show_micros(closing.max_us)));
        if connections.never_closed > 0 {
            list.push(format!("{} not closed by the server", HumanCount(connections.never_closed)));
        }
    }
    if connections.still_closing > 0 {
        list.push(format!("{} still being closed", HumanCount(connections.still_closing)));
    }
    wrap(out, "connections", &joined(&list));

    let messages = &run.messages;
    let replies = counted(messages.replies, "reply");
    let mut list = vec![format!("{replies} in {}: {}/s", seconds(run.seconds), count(run.rate))];
    list.extend(rate_kept(run).map(|kept| format!("{kept} of the rate")));
    list.push(format!("{}/s each way", size(run.bytes_per_second as u64)));
    if let Some(datagrams) = &run.datagrams {
        let share = percent(datagrams.lost as f64 / messages.sent.max(1) as f64);
        list.push(format!("{} lost ({share})", HumanCount(datagrams.lost)));
        list.push(format!("{} reordered", HumanCount(datagrams.reordered)));
        list.push(format!("{} came again or too late", HumanCount(datagrams.duplicates)));
    }
    wrap(out, "messages", &joined(&list));
    let account = account(run);
    if !account.is_empty() {
        let list: Vec<_> = account.into_iter().map(|(what, number)| format!("{number} {what}")).collect();
        wrap(out, "account", &format!("{} due: {}", HumanCount(run.outcomes.due), joined(&list)));
    }
    if let Some(rate) = run.rate_kept.as_ref().filter(|rate| !rate.kept) {
        wrap(out, "", &format!("{:INDENT$}{}", "", rate.text));
    }
    if let Some(why) = ended_early(run) {
        wrap(out, "", &format!("{:INDENT$}{why}", ""));
    }
}

/// How messages were sent.
pub(super) fn pace(run: &Run) -> String {
    match run.config.rate {
        _ if run.search.is_some() => "open loop, looking for the highest rate".to_owned(),
        Some(rate) => format!("open loop, {} messages/s", count(rate)),
        None => format!("closed loop, depth {}", run.config.depth),
    }
}

/// How much of the rate that was asked for was kept.
fn rate_kept(run: &Run) -> Option<String> {
    let asked = run.config.rate.filter(|_| run.search.is_none() && run.seconds > 0.0)?;
    Some(percent(run.rate / asked))
}

/// Whether and why a run ended before its time.
pub(super) fn ended_early(run: &Run) -> Option<String> {
    let why = match run.cut? {
        Cut::Enough => return None,
        Cut::NoConnection => "no connection was left, or nobody answered any more",
        Cut::Interrupted => "by a signal",
    };
    let after = match (run.config.duration, run.config.messages) {
        // A step of a search may have been made longer than that.
        _ if run.search.is_some() => seconds(run.seconds),
        (Some(duration), _) => format!("{:.2} of {duration:.2} s", run.seconds),
        (None, Some(all)) => format!("{} of {}", HumanCount(run.outcomes.due), counted(all, "message")),
        (None, None) => seconds(run.seconds),
    };
    Some(format!("ended early, after {after}: {why}"))
}

/// What became of the messages that were due: those outcomes that there were. Empty, if in a closed loop all were answered.
pub(super) fn account(run: &Run) -> Vec<Figure> {
    let Outcomes { due, answered, answered_late, unanswered, failed, never_sent } = run.outcomes;
    if answered == due && run.service.is_none() {
        return Vec::new();
    }
    let all = [
        ("answered in time", answered),
        ("answered late", answered_late),
        ("unanswered", unanswered),
        ("failed with their connections", failed),
        ("never sent: connection gone", never_sent.connection_gone),
        ("never sent: generator behind", never_sent.generator_behind),
        ("never sent: end reached", never_sent.end_reached),
    ];
    let some = all.into_iter().filter(|(what, number)| *number > 0 || *what == "answered in time");
    some.map(|(what, number)| (what, HumanCount(number).to_string())).collect()
}

fn percentiles(out: &mut String, run: &Run) -> anyhow::Result<()> {
    if run.response.count == 0 {
        let nothing = if run.outcomes.due == 0 { "no message was due" } else { "no reply came" };
        writeln!(out, "\n{nothing}")?;
        return Ok(());
    }
    write!(out, "\n{:<14}", "latency")?;
    for percentile in PERCENTILES {
        write!(out, "{:>9}", format!("p{percentile}"))?;
    }
    writeln!(out, "{:>9}{:>9}", "max", "mean")?;
    for (what, latency) in latencies(run).filter(|(_, latency)| latency.count > 0) {
        write!(out, "{what:<14}")?;
        for number in 0..PERCENTILES.len() {
            write!(out, "{:>9}", percentile(latency, number))?;
        }
        writeln!(out, "{:>9}{:>9}", longest(latency), mean(latency))?;
    }
    wrap(out, "", &format!("{:14}{}", "", coverage(run)));
    Ok(())
}

/// How many of the messages that were due the percentiles contain, and how many of these are bounds.
pub(super) fn coverage(run: &Run) -> String {
    let due = run.outcomes.due;
    let due_words = counted(due, "message");
    let of = match run.response.count {
        1 if due == 1 => "of the one message due".to_owned(),
        count if count == due => format!("of all {due_words} due"),
        count => format!("of {} of {due_words} due", HumanCount(count)),
    };
    let bounds = match run.response.bounds {
        0 => String::new(),
        1 => "; 1 was not answered: it took at least (>) as long as it was waited for".to_owned(),
        bounds => format!(
            "; {} were not answered: they took at least (>) as long as they were waited for",
            HumanCount(bounds)
        ),
    };
    format!("{of}{bounds}")
}

/// The longest of these, or what it is at least.
pub(super) fn longest(latency: &Latency) -> String {
    show_at_least(latency.max_us, latency.is_lower_bound("max_us"))
}

/// Their mean, or what it is at least.
pub(super) fn mean(latency: &Latency) -> String {
    show_at_least(latency.mean_us, latency.is_lower_bound("mean_us"))
}

/// The latencies of a run's messages, by their names.
pub(super) fn latencies(run: &Run) -> impl Iterator<Item = (&'static str, &Latency)> {
    let response = if run.service.is_some() { "response time" } else { "round trip" };
    let all = [(response, Some(&run.response)), ("service time", run.service.as_ref())];
    all.into_iter().filter_map(|(what, latency)| Some((what, latency?)))
}

/// One of [`PERCENTILES`]. Of fewer latencies than one to each side of it there is none: of ten, p99.99 would only be
/// another name for the longest.
pub(super) fn percentile(latency: &Latency, number: usize) -> String {
    let (percentile, time, at_least) = latency.percentiles()[number];
    let needed = (100.0 / (100.0 - percentile)).round();
    if (latency.count as f64) < needed { NONE.to_owned() } else { show_at_least(time, at_least) }
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
        let length = (u128::from(number) * u128::from(BAR)).div_ceil(u128::from(most)) as usize;
        writeln!(
            out,
            "from {:>8}  {:<width$} {:>8}",
            show_micros(micros(bound(row as u32))),
            "#".repeat(length),
            percent(number as f64 / histogram.len() as f64),
            width = BAR as usize
        )?;
    }
    Ok(())
}

/// The cells of the table of backends, those with most replies first: a head, and then a row for each.
pub(super) fn backends(run: &Run) -> Vec<Vec<String>> {
    let head = ["greeting", "opened", "replies", "share", "unanswered", "p50", "p99", "max"];
    let mut sorted: Vec<_> = run.backends.iter().collect();
    sorted.sort_by_key(|backend| Reverse(backend.replies));
    // Files can hold any numbers.
    let all = sorted.iter().map(|backend| backend.replies).fold(0, u64::saturating_add).max(1);
    let row = |backend: &&Backend| {
        let response = &backend.response;
        let max = if response.count == 0 { NONE.to_owned() } else { longest(response) };
        vec![
            backend.greeting.clone(),
            HumanCount(backend.connections).to_string(),
            HumanCount(backend.replies).to_string(),
            percent(backend.replies as f64 / all as f64),
            HumanCount(backend.unanswered).to_string(),
            percentile(response, 0),
            percentile(response, 2),
            max,
        ]
    };
    std::iter::once(head.map(str::to_owned).to_vec()).chain(sorted.iter().map(row)).collect()
}

/// The runs that were merged.
fn parts(out: &mut String, run: &Run) {
    if run.parts.is_empty() {
        return;
    }
    let head = ["run", "host", "replies", "replies/s", "errors", "measured from"].map(str::to_owned).to_vec();
    let rows = run.parts.iter().map(|part| {
        let from = part.measured_from.split('T').nth(1).unwrap_or(&part.measured_from);
        let from = from.trim_end_matches('Z').get(..12).unwrap_or(from).to_owned();
        let (replies, errors) = (HumanCount(part.replies).to_string(), HumanCount(part.errors).to_string());
        vec![part.name.clone(), part.host.clone(), replies, count(part.rate), errors, from]
    });
    out.push('\n');
    out.push_str(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
}

/// What went wrong, and what to keep in mind.
fn problems(out: &mut String, run: &Run) {
    if !run.errors.is_empty() {
        out.push_str("\nerrors\n");
        for error in &run.errors {
            wrap(out, "  ", &format!("{}; the first: {}", error.kind.counted(error.count), error.first));
        }
    }
    for mismatch in run.mismatches.iter().skip(1) {
        wrap(out, "  ", &mismatch.to_string());
    }
    for verdict in run.criteria.iter().filter(|verdict| verdict.holds) {
        out.push('\n');
        wrap(out, "", &format!("not good enough: {} holds: {}", verdict.criterion, verdict.figure));
    }
    for warning in &run.generator.warnings {
        out.push('\n');
        wrap(out, "", &format!("warning: {warning}"));
    }
}

/// What came of a run, figure by figure, beside its latencies.
pub(super) fn results(run: &Run) -> Vec<Figure> {
    let Run { connections, messages, .. } = run;
    let whole = |number: u64| HumanCount(number).to_string();
    let mut all = vec![("replies", whole(messages.replies)), ("measured for", seconds(run.seconds))];
    all.push(("replies/s", count(run.rate)));
    all.extend(rate_kept(run).map(|kept| ("rate kept", kept)));
    all.push(("bytes/s each way", size(run.bytes_per_second as u64).to_string()));
    all.push(("due", whole(run.outcomes.due)));
    all.extend(account(run));
    if let Some(datagrams) = &run.datagrams {
        let share = percent(datagrams.lost as f64 / messages.sent.max(1) as f64);
        all.push(("lost", format!("{} ({share})", whole(datagrams.lost))));
        all.push(("reordered", whole(datagrams.reordered)));
        all.push(("came again or too late", whole(datagrams.duplicates)));
    }
    all.push(("connections opened", format!("{} of {}", whole(connections.opened), whole(connections.asked))));
    if connections.idle_asked > 0 {
        let (opened, asked) = (whole(connections.idle_opened), whole(connections.idle_asked));
        all.push(("idle ones opened", format!("{opened} of {asked}")));
    }
    if connections.connect.count > 0 {
        let (half, most) = (percentile(&connections.connect, 0), show_micros(connections.connect.max_us));
        all.push(("connecting took", format!("p50 {half}, max {most}")));
    }
    if connections.reopened > 0 {
        all.push(("reopened", whole(connections.reopened)));
    }
    all.push(("errors", whole(run.error_count())));
    all.push(("generator's processor time", seconds(run.generator.cpu_seconds)));
    if run.service.is_some() {
        all.push(("left late", whole(run.generator.late)));
    }
    if let Some(lateness) = run.generator.lateness.as_ref().filter(|lateness| lateness.count > 0) {
        all.push(("generator's lateness", format!("p99 {}, max {}", percentile(lateness, 2), longest(lateness))));
    }
    if let Some(stalls) = run.generator.stalls.as_ref().filter(|stalls| stalls.count > 0) {
        all.push(("generator's longest stall", longest(stalls)));
    }
    if let Some(closing) = &connections.closing {
        all.push(("closing took", format!("p50 {}, max {}", percentile(closing, 0), longest(closing))));
    }
    if connections.never_closed > 0 {
        all.push(("never closed by the server", whole(connections.never_closed)));
    }
    if connections.still_closing > 0 {
        all.push(("still being closed at the end", whole(connections.still_closing)));
    }
    if let Some(watched) = &run.watched {
        all.push(("server's processor time per message", show_micros(watched.cpu_us_per_message)));
        all.push(("server's memory per connection", format!("{:.0} B", watched.resident_per_connection)));
        all.push(("server's memory at its peak", size(watched.resident_peak).to_string()));
    }
    all
}

/// What was asked for, where and when.
pub(super) fn settings(run: &Run) -> Vec<Figure> {
    let config = &run.config;
    let mut all = vec![("address", config.address.clone())];
    if run.addresses != [config.address.as_str()] {
        all.push(("measured", run.addresses.join(", ")));
    }
    all.push(("connections", HumanCount(config.connections).to_string()));
    all.push(("idle connections", HumanCount(config.idle).to_string()));
    all.push(("size of messages", sizes(config).to_string()));
    all.push(("load", pace(run)));
    let limits = [config.duration.map(seconds), config.messages.map(|n| counted(n, "message").to_string())];
    all.push(("measured for", limits.into_iter().flatten().collect::<Vec<_>>().join(" or ")));
    all.push(("warm-up", seconds(config.warm_up)));
    all.push(("timeout", seconds(config.timeout)));
    let optional = [
        ("connections opened per second", config.connect_rate.map(count)),
        ("messages before a reconnect", config.reconnect.map(|n| HumanCount(n).to_string())),
        ("local addresses", (!config.sources.is_empty()).then(|| shortened(&config.sources))),
        ("busy poll", (config.busy_poll > 0.0).then(|| seconds(config.busy_poll))),
    ];
    all.extend(optional.into_iter().filter_map(|(what, value)| Some((what, value?))));
    all.push(("seed", config.seed.to_string()));
    all.push(("began", when(&run.started)));
    all.push(("measured from", when(&run.measured_from)));
    let host = [run.host.name.as_str(), &run.host.system, &run.host.architecture].map(str::to_owned);
    let named: Vec<_> = host.into_iter().filter(|text| !text.is_empty()).collect();
    all.push(("generator", format!("{}, {}", named.join(", "), counted(run.host.processors, "processor"))));
    all.push(("echoloop", run.maker()));
    all
}

fn shortened(list: &[String]) -> String {
    match list {
        [first, .., last] if list.len() > 4 => format!("{first} to {last} ({})", list.len()),
        list => list.join(", "),
    }
}

/// One step of a search, in a line.
pub fn step_line(step: &Step) -> String {
    let verdict = if step.holds { "holds" } else { "fails" };
    format!("{:>12}/s {verdict}: {}", count(step.rate), step.because)
}

/// What a search found.
pub(super) fn answer(search: &Search) -> String {
    let criterion = &search.criterion;
    let found = match (search.holds_at, search.fails_at) {
        (Some(holds), Some(fails)) => format!(
            "{criterion} holds up to {}/s, and no longer at {}/s (margin {:.1} %)",
            count(holds),
            count(fails),
            100.0 * (fails / holds - 1.0)
        ),
        (Some(holds), None) => format!("{criterion} holds at {}/s; where it ends was not found", count(holds)),
        (None, Some(fails)) => format!("{criterion} does not hold, not even at {}/s", count(fails)),
        (None, None) => format!("{criterion}: no rate was tried to the end"),
    };
    search
        .ended
        .as_ref()
        .map_or(found.clone(), |why| format!("{found}; the search ended before it had found out: {why}"))
}

/// Runs side by side, with ratios to the first, and what is wrong with each.
///
/// # Errors
///
/// If a run cannot be shown.
pub fn comparison(runs: &[Run]) -> anyhow::Result<String> {
    let runs = runs.iter().map(printable_run).collect::<anyhow::Result<Vec<_>>>()?;
    let names = distinct_names(runs.iter());
    let rows = rows(&runs, &names);
    let mut out = String::new();
    let columns: Vec<usize> = (1..=runs.len()).collect();
    for (number, columns) in columns.chunks(SIDE_BY_SIDE).enumerate() {
        if number > 0 {
            out.push('\n');
        }
        let part = |row: &Vec<String>| {
            std::iter::once(0).chain(columns.iter().copied()).filter_map(|column| row.get(column).cloned()).collect()
        };
        out.push_str(&table(&rows.iter().map(part).collect::<Vec<_>>()));
    }
    for (run, name) in runs.iter().zip(&names) {
        let mut problem = String::new();
        if let Some(why) = ended_early(run) {
            wrap(&mut problem, "  ", &why);
        }
        problems(&mut problem, run);
        if !problem.is_empty() {
            out.push('\n');
            wrap(&mut out, "", &format!("{name}:"));
            out.push_str(problem.trim_start_matches('\n'));
        }
    }
    Ok(out)
}

/// The cells of [`comparison`]: first the runs' names, then a figure a row.
pub(super) fn rows(runs: &[Run], names: &[String]) -> Vec<Vec<String>> {
    let row = |what: &str, figure: &dyn Fn(&Run) -> Option<f64>, show: &dyn Fn(f64) -> String| -> Vec<String> {
        let first = runs.first().and_then(figure);
        let mut cells = vec![what.to_owned()];
        for (number, run) in runs.iter().enumerate() {
            cells.push(match (figure(run), first) {
                (None, _) => NONE.to_owned(),
                (Some(value), Some(first)) if number > 0 && first > 0.0 => {
                    let ratio = value / first;
                    let ratio = if ratio < 100.0 { format!("{ratio:.2}") } else { count(ratio) };
                    format!("{} ({ratio})", show(value))
                }
                (Some(value), _) => show(value),
            });
        }
        cells
    };
    let whole = |number: f64| HumanCount(number as u64).to_string();
    let mut rows = vec![std::iter::once(String::new()).chain(names.iter().cloned()).collect()];
    rows.push(row("replies/s", &|run| Some(run.rate), &count));
    if runs.iter().any(|run| rate_kept(run).is_some()) {
        let kept = |run: &Run| Some(run.rate / run.config.rate.filter(|_| run.search.is_none())?);
        rows.push(row("rate kept", &kept, &percent));
    }
    rows.push(row("bytes/s", &|run| Some(run.bytes_per_second), &|bytes| size(bytes as u64).to_string()));
    let services: &[bool] = if runs.iter().any(|run| run.service.is_some()) { &[false, true] } else { &[false] };
    for &service in services {
        let latency = move |run: &Run| {
            let latency = if service { run.service.clone()? } else { run.response.clone() };
            (latency.count > 0).then_some(latency)
        };
        // What is only known to be at least so long is told as such.
        let marked = |mut cells: Vec<String>, is_bound: &dyn Fn(&Latency) -> bool| {
            for (cell, run) in cells.iter_mut().skip(1).zip(runs) {
                if cell != NONE && latency(run).as_ref().is_some_and(is_bound) {
                    cell.insert(0, '>');
                }
            }
            cells
        };
        let prefix = if service { "service " } else { "" };
        for (number, name) in PERCENTILES.iter().enumerate() {
            let time = move |run: &Run| {
                let latency = latency(run)?;
                (percentile(&latency, number) != NONE).then(|| latency.percentiles()[number].1)
            };
            let bound = |latency: &Latency| latency.percentiles()[number].2;
            rows.push(marked(row(&format!("{prefix}p{name}"), &time, &show_micros), &bound));
        }
        let max = row(&format!("{prefix}max"), &|run| Some(latency(run)?.max_us), &show_micros);
        rows.push(marked(max, &|latency| latency.is_lower_bound("max_us")));
    }
    rows.push(row("connections", &|run| Some(run.connections.opened as f64), &whole));
    rows.push(row("errors", &|run| Some(run.error_count() as f64), &whole));
    let outcomes: [OutcomeRow; 4] = [
        ("answered late", |outcomes| outcomes.answered_late),
        ("unanswered", |outcomes| outcomes.unanswered),
        ("failed", |outcomes| outcomes.failed),
        ("never sent", |outcomes| outcomes.never_sent.sum()),
    ];
    for (what, number) in outcomes {
        if runs.iter().any(|run| number(&run.outcomes) > 0) {
            rows.push(row(what, &|run| Some(number(&run.outcomes) as f64), &whole));
        }
    }
    if runs.iter().any(|run| run.datagrams.is_some()) {
        rows.push(row("reordered", &|run| Some(run.datagrams?.reordered as f64), &whole));
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

/// Rows of cells as columns, the first one to the left and the others to the right, in at most [`WIDTH`] columns: what is
/// too long is wrapped.
fn table(rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH as u16);
    for row in rows {
        table.add_row(row);
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if number == 0 { 0 } else { 2 }, 0));
        column.set_cell_alignment(if number == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    table.lines().fold(String::new(), |out, line| out + line.trim_end() + "\n")
}

/// Parts of a sentence, each of which stays on one line if it is short.
fn joined(parts: &[String]) -> String {
    let keep = |part: &String| {
        if part.chars().count() < WIDTH / 2 { part.replace(' ', &KEEP.to_string()) } else { part.clone() }
    };
    parts.iter().map(keep).collect::<Vec<_>>().join(", ")
}

/// Adds a text in lines of at most [`WIDTH`] columns. After a head the second column begins at [`INDENT`]; after spaces, or
/// none, what is wrapped is set in by two.
fn wrap(out: &mut String, head: &str, text: &str) {
    let (first, indent) = match head.trim_end() {
        "" => (head.to_owned(), head.len() + 2),
        _ => (format!("{head:<INDENT$}"), INDENT),
    };
    // What is set in already stays so.
    let lead = text.len() - text.trim_start().len();
    let mut line = first + &text[..lead];
    let indent = if lead > 0 { lead + 2 } else { indent };
    let mut empty = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let word = word.replace(KEEP, " ");
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(&word);
        empty = false;
        // A word that is longer than a line has to be broken.
        while line.chars().count() > WIDTH {
            let at = line.char_indices().nth(WIDTH).map_or(line.len(), |(at, _)| at);
            let rest = line.split_off(at);
            out.push_str(&line);
            out.push('\n');
            line = " ".repeat(indent) + &rest;
        }
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// A run in which every text can be shown, on a terminal or a page: files come from anywhere.
pub(super) fn printable_run(run: &Run) -> anyhow::Result<Run> {
    fn clean(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = escape::text(text).to_string(),
            serde_json::Value::Array(values) => values.iter_mut().for_each(clean),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(clean),
            _ => {}
        }
    }
    let mut json = serde_json::to_value(run)?;
    clean(&mut json);
    Ok(serde_json::from_value(json)?)
}

/// The sizes of a run's messages.
pub(super) fn sizes(config: &Settings) -> String {
    match (config.smallest, config.largest) {
        (smallest, largest) if smallest == largest => size(smallest).to_string(),
        (smallest, largest) => format!("{} to {}", size(smallest), size(largest)),
    }
}

pub(super) fn size(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().iec()
}

/// A length of time with three digits.
pub(super) fn seconds(seconds: f64) -> String {
    if seconds == 0.0 { "0 s".to_owned() } else { show_micros(seconds * 1e6) }
}

/// A time of day as one reads it, from RFC 3339.
pub(super) fn when(time: &str) -> String {
    match time.split_once('T') {
        Some((day, time)) => format!("{day} {} UTC", time.split(['.', 'Z']).next().unwrap_or(time)),
        None => time.to_owned(),
    }
}

/// A share as one reads it. What is there is never 0, and what is not all is never 100 %.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        _ if percent > 0.0 && percent < 0.005 => "<0.01 %".to_owned(),
        _ if (99.995..100.0).contains(&percent) => ">99.99 %".to_owned(),
        _ => format!("{percent:.2} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::summary::tests::sample;
    use crate::bench::{ErrorCount, ErrorKind, Part, Watched};
    use proptest::prelude::*;

    /// A run whose texts and numbers are as long as they can be, with all that a report may have.
    fn longest_run(name: &str, address: &str, number: u64, nanoseconds: u64) -> Run {
        let mut run = sample(name, &[nanoseconds, nanoseconds, 1]);
        run.config.address = address.to_owned();
        run.addresses = vec![address.to_owned(), "[fe80::ffff:ffff:ffff:ffff%interface0]:65535".to_owned()];
        run.config.rate = Some(number as f64);
        (run.rate, run.bytes_per_second, run.seconds) = (number as f64, number as f64, number as f64 / 7.0);
        (run.connections.opened, run.connections.asked, run.connections.reopened) = (number, number, number);
        (run.connections.idle_asked, run.connections.idle_opened) = (number, number);
        (run.outcomes.due, run.outcomes.unanswered, run.messages.replies) = (number, number, number);
        run.service = Some(run.response.clone());
        run.errors = vec![ErrorCount { kind: ErrorKind::Refused, count: number, first: format!("{address}: refused") }];
        run.generator.warnings = vec![format!("{address} is what it is, and {number} is a number")];
        let (response, pid) = (run.response.clone(), i32::MAX);
        run.backends = vec![
            Backend {
                greeting: name.to_owned(),
                connections: number,
                replies: number,
                bytes: number,
                unanswered: number,
                response: response.clone(),
            };
            2
        ];
        run.watched = Some(Watched {
            pid,
            cpu_seconds: number as f64,
            cpu_us_per_message: number as f64 / 3.0,
            resident_before: number,
            resident_connected: number,
            resident_peak: number,
            resident_per_connection: number as f64 / 3.0,
        });
        run.search = Some(Search {
            criterion: "p99.9999 < 3600.000 s".to_owned(),
            holds_at: Some(number as f64),
            fails_at: Some(number as f64 + 0.1),
            ended: Some(format!("{address}: {number}")),
            steps: Vec::new(),
        });
        run.merged = 2;
        let part = Part {
            id: run.id.clone(),
            name: name.to_owned(),
            host: "x".repeat(64), // HOST_NAME_MAX
            addresses: run.addresses.clone(),
            measured_from: run.measured_from.clone(),
            measured_to: run.measured_to.clone(),
            rate: number as f64,
            replies: number,
            errors: number,
        };
        run.parts = vec![part; 2];
        run
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_report_fits_eighty_columns(
            name in "[a-z]{1,20}|[a-z/]{200}|([a-z]{1,9} ){30}",
            address in "unix:/[a-z/]{107}|udp:\\[2001:db8(:ffff){6}%[a-z]{15}\\]:65535|127.0.0.1:1",
            number in prop::sample::select(vec![0, 1, 2, 1000, 999_999_999_999, 1 << 53]),
            nanoseconds in prop::sample::select(vec![1u64, 999_999, 3_600_000_000_000]),
            runs in 2..5usize,
        ) {
            let run = longest_run(&name, &address, number, nanoseconds);
            let runs: Vec<_> = (0..runs).map(|_| run.clone()).collect();
            for text in [text(&run).unwrap(), comparison(&runs).unwrap()] {
                for line in text.lines() {
                    prop_assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
                }
                for wrong in [" 1 messages", " 1 replies", " 1 connections", " 1 runs", " 1 bytes", " 1 errors"] {
                    prop_assert!(!text.contains(wrong), "{wrong}: {text}");
                }
            }
        }
    }
}
