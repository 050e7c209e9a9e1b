//! Runs as people and other programs read them: as text, as a page, as JSON, as HdrHistogram's logs.

mod charts;
mod files;
pub(super) mod html;
mod plot;
mod text;

use std::time::{Duration, SystemTime};

use anyhow::Context;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

pub use files::{Files, Outputs};
pub use text::{comparison, step_line, text};

use super::Run;
use crate::{escape, stdio};
use files::Format;

/// Nanoseconds in the milliseconds that HdrHistogram's tools expect.
const NANOS_PER_MILLI: f64 = 1e6;

/// Prints `text`, on standard error if a file is standard output, and writes runs to the files that were opened for them.
/// The page has all of them, the others the first.
///
/// Whatever fails, the rest is tried still: what one disk has no room for, a terminal has.
///
/// # Errors
///
/// What could not be printed or written.
pub fn deliver(text: &str, runs: &[Run], files: Files) -> Vec<anyhow::Error> {
    let printed = if files.take_stdout() { stdio::eprint(text) } else { stdio::print(text) };
    let mut failures: Vec<anyhow::Error> = printed.err().map(Into::into).into_iter().collect();
    for (format, output) in files.0 {
        let contents = match (format, runs) {
            (_, []) => continue,
            (Format::Json, [run, ..]) => json(run),
            (Format::Html, runs) => html::page(runs).map(String::into_bytes),
            (Format::Hdr, [run, ..]) => interval_log(run),
            (Format::Hgrm, [run, ..]) => percentile_distribution(run).map(String::into_bytes),
        };
        failures.extend(contents.and_then(|contents| output.write(&contents)).err());
    }
    failures
}

/// A run as JSON, as `Run::read` reads it.
fn json(run: &Run) -> anyhow::Result<Vec<u8>> {
    Ok((escape::json(&serde_json::to_string_pretty(run)?).into_owned() + "\n").into_bytes())
}

/// The JSON Schema of runs.
pub fn schema() -> String {
    format!("{:#}\n", schemars::schema_for!(Run).to_value())
}

/// A run's response times by interval, as a standard HdrHistogram interval log: the maxima in milliseconds, the
/// histograms in nanoseconds.
fn interval_log(run: &Run) -> anyhow::Result<Vec<u8>> {
    let mut log = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let began = humantime::parse_rfc3339(&run.measured_from).context("the run's beginning is no time")?;
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("echoloop bench: {}", escape::text(&run.name)))
        .with_start_time(began)
        .with_base_time(SystemTime::UNIX_EPOCH)
        .with_max_value_divisor(NANOS_PER_MILLI)
        .begin_log_with(&mut log, &mut serializer)?;
    let since_epoch = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    for interval in &run.timeline {
        let at = since_epoch + Duration::from_secs_f64(interval.at);
        writer
            .write_histogram(&interval.response.decode()?, at, Duration::from_secs_f64(interval.seconds), None)
            .map_err(|error| anyhow::anyhow!("cannot write the interval log: {error:?}"))?;
    }
    Ok(log)
}

/// The distribution of a run's response times in milliseconds, as HdrHistogram's `outputPercentileDistribution` writes
/// it and its plotters read it, with five steps to each halving of the distance to 100 %.
fn percentile_distribution(run: &Run) -> anyhow::Result<String> {
    use std::fmt::Write;

    const STEPS: u32 = 5;
    let histogram: Histogram<u64> = run.response.decode()?;
    let mut out = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let millis = |nanos: f64| nanos / NANOS_PER_MILLI;
    for step in histogram.iter_quantiles(STEPS) {
        let (value, reached) = (millis(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let count = histogram.count_between(0, step.value_iterated_to());
        write!(out, "{value:12.3} {reached:2.12} {count:10}")?;
        if reached < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - reached))?;
        }
        out.push('\n');
    }
    let Run { response, .. } = run;
    let (mean, deviation) = (response.mean_us / 1000.0, response.stdev_us / 1000.0);
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    let (max, count) = (response.max_us / 1000.0, response.count);
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {count:12}]")?;
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {:12}]", histogram.buckets(), 2048)?;
    Ok(out)
}
