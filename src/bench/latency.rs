//! Latencies: recorded in nanoseconds in HdrHistograms, added up, and summed up in a few numbers.
//!
//! Percentiles are never averaged: what several intervals or machines have measured is added as histograms (G. Tene,
//! "How NOT to measure latency", 2013). This module does not know what is measured.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::iterators::IterationValue;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Significant decimal digits that are kept of each value.
const DIGITS: u8 = 3;

/// The latency up to which there is room from the beginning; a longer one makes room for itself.
const ROOM: Duration = Duration::from_secs(600);

/// A percentile is printed as an exact figure while its upper and lower limit differ by less than this ratio; beyond
/// that only its lower limit is given.
const EXACT: f64 = 1.01;

/// The percentiles that reports show.
pub(super) const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// The names of the figures of [`Latency`] for [`PERCENTILES`].
const NAMES: [&str; 5] = ["p50_us", "p90_us", "p99_us", "p99_9_us", "p99_99_us"];

/// The figures that can be lower bounds.
const LOWER_BOUNDS: [&str; 7] = ["p50_us", "p90_us", "p99_us", "p99_9_us", "p99_99_us", "mean_us", "max_us"];

/// An empty histogram of nanoseconds.
pub(super) fn histogram() -> Histogram<u64> {
    // Copied, which is a good deal faster than made.
    static EMPTY: LazyLock<Histogram<u64>> = LazyLock::new(|| {
        let mut histogram = Histogram::new_with_max(ROOM.as_nanos() as u64, DIGITS).expect("the bounds are valid");
        histogram.auto(true);
        histogram
    });
    EMPTY.clone()
}

/// Latencies: those that were measured, and *bounds*: how long was waited for a reply that never came. A bound is a
/// latency of which is only known that it is at least so long.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distribution {
    /// All of them, the bounds as if they were measured.
    all: Histogram<u64>,
    bounds: Histogram<u64>,
}

/// A percentile of a [`Distribution`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantile {
    /// It is this, in nanoseconds.
    Is(u64),
    /// It is at least this, for some of the latencies that decide it are bounds.
    AtLeast(u64),
}

impl Distribution {
    pub fn new() -> Self {
        Distribution { all: histogram(), bounds: histogram() }
    }

    /// Adds latencies of `nanoseconds`.
    pub fn record(&mut self, nanoseconds: u64, count: u64) {
        record(&mut self.all, nanoseconds, count);
    }

    /// Adds latencies of at least `nanoseconds`.
    pub fn record_bound(&mut self, nanoseconds: u64, count: u64) {
        record(&mut self.all, nanoseconds, count);
        record(&mut self.bounds, nanoseconds, count);
    }

    /// Adds those of a histogram.
    pub fn add_histogram(&mut self, other: &Histogram<u64>) {
        // It grows as it must.
        let _ = self.all.add(other);
    }

    /// Adds those of another one.
    pub fn add(&mut self, other: &Distribution) {
        let _ = self.all.add(&other.all);
        let _ = self.bounds.add(&other.bounds);
    }

    /// How many there are, bounds included.
    pub fn len(&self) -> u64 {
        self.all.len()
    }

    /// How many of them are bounds.
    pub fn bounds(&self) -> u64 {
        self.bounds.len()
    }

    /// All of them, bounds as if they were measured.
    pub fn all(&self) -> &Histogram<u64> {
        &self.all
    }

    /// A percentile. A bound stands for any latency from its value upward: so the percentile lies between the one with the bounds
    /// taken as they are and the one with all of them infinite.
    pub fn quantile(&self, percentile: f64) -> Quantile {
        let lowest = self.all.value_at_percentile(percentile);
        if self.bounds.is_empty() || self.all.is_empty() {
            return Quantile::Is(lowest);
        }
        match self.highest(percentile) {
            Some(highest) if highest as f64 <= lowest as f64 * EXACT => Quantile::Is(highest),
            _ => Quantile::AtLeast(lowest),
        }
    }

    /// What a percentile is if bounds never end; `None` if it is one of them.
    pub fn highest(&self, percentile: f64) -> Option<u64> {
        let rank = (percentile / 100.0 * self.len() as f64).ceil().max(1.0) as u64;
        let mut bounds =
            self.bounds.iter_recorded().map(|cell| (cell.value_iterated_to(), cell.count_at_value())).peekable();
        let (mut count, mut below) = (0, 0);
        for cell in self.all.iter_recorded() {
            let value = cell.value_iterated_to();
            while let Some(&(bound, bounds_there)) = bounds.peek()
                && bound <= value
            {
                below += bounds_there;
                bounds.next();
            }
            count += cell.count_at_value();
            if count - below >= rank {
                return Some(value);
            }
        }
        None
    }

    /// How many are known to be longer than `nanoseconds`, or may be.
    pub fn count_beyond(&self, nanoseconds: u64) -> u64 {
        let within = |histogram: &Histogram<u64>| histogram.count_between(0, nanoseconds);
        self.len() - (within(&self.all) - within(&self.bounds))
    }

    /// The mean in nanoseconds; of bounds what they are at least.
    pub fn mean(&self) -> f64 {
        self.all.mean()
    }

    /// The longest in nanoseconds.
    pub fn max(&self) -> u64 {
        self.all.max()
    }
}

/// Adds to a histogram.
pub(super) fn record(histogram: &mut Histogram<u64>, nanoseconds: u64, count: u64) {
    if histogram.record_n(nanoseconds, count).is_err() {
        histogram.saturating_record_n(nanoseconds, count);
    }
}

/// What is known of a set of latencies. Times are in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// How many there are, bounds included.
    pub count: u64,
    /// How many of them are bounds: latencies of which is only known that they are at least so long, for what was waited for
    /// did not come.
    #[serde(default)]
    pub bounds: u64,
    /// Those of the figures here that are only known to be at least what they say, because of bounds.
    #[serde(default)]
    #[schemars(extend("items" = serde_json::json!({ "type": "string", "enum": LOWER_BOUNDS })))]
    pub lower_bounds: Vec<String>,
    /// The shortest.
    pub min_us: f64,
    /// Their mean.
    pub mean_us: f64,
    /// Their standard deviation.
    pub stdev_us: f64,
    /// The time within which 50 % were.
    pub p50_us: f64,
    /// The time within which 90 % were.
    pub p90_us: f64,
    /// The time within which 99 % were.
    pub p99_us: f64,
    /// The time within which 99.9 % were.
    pub p99_9_us: f64,
    /// The time within which 99.99 % were.
    pub p99_99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// All of them: an HdrHistogram of nanoseconds with 3 significant digits, in its V2 compressed encoding, in
    /// Base64.
    pub histogram: String,
    /// The bounds among them, encoded alike; null if there are none.
    #[serde(default)]
    pub bounds_histogram: Option<String>,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        let mut distribution = Distribution::new();
        distribution.add_histogram(histogram);
        Latency::from(&distribution)
    }
}

impl From<&Distribution> for Latency {
    fn from(distribution: &Distribution) -> Self {
        let histogram = &distribution.all;
        let mut lower_bounds = Vec::new();
        let percentiles: [f64; 5] = std::array::from_fn(|number| match distribution.quantile(PERCENTILES[number]) {
            Quantile::Is(nanoseconds) => micros(nanoseconds),
            Quantile::AtLeast(nanoseconds) => {
                lower_bounds.push(NAMES[number].to_owned());
                micros(nanoseconds)
            }
        });
        if distribution.bounds() > 0 {
            lower_bounds.extend(["mean_us", "max_us"].map(str::to_owned));
        }
        let [p50_us, p90_us, p99_us, p99_9_us, p99_99_us] = percentiles;
        Latency {
            count: histogram.len(),
            bounds: distribution.bounds(),
            lower_bounds,
            bounds_histogram: (distribution.bounds() > 0).then(|| encode(&distribution.bounds)),
            min_us: micros(histogram.min()),
            mean_us: histogram.mean() / 1000.0,
            stdev_us: histogram.stdev() / 1000.0,
            p50_us,
            p90_us,
            p99_us,
            p99_9_us,
            p99_99_us,
            max_us: micros(histogram.max()),
            histogram: encode(histogram),
        }
    }
}

impl Latency {
    /// The histogram, in nanoseconds, bounds as if they were measured.
    ///
    /// # Errors
    ///
    /// If the encoding is damaged.
    pub fn decode(&self) -> anyhow::Result<Histogram<u64>> {
        decode(&self.histogram)
    }

    /// All of them.
    ///
    /// # Errors
    ///
    /// If the encoding is damaged, or there are bounds that are not among them.
    pub(super) fn distribution(&self) -> anyhow::Result<Distribution> {
        let all = self.decode()?;
        let bounds = self.bounds_histogram.as_deref().map_or_else(|| Ok(histogram()), decode)?;
        let within = |cell: IterationValue<u64>| cell.count_at_value() <= all.count_at(cell.value_iterated_to());
        ensure!(bounds.iter_recorded().all(within), "a histogram is damaged: it lacks bounds that are told beside it");
        for (told, held) in [(self.count, all.len()), (self.bounds, bounds.len())] {
            ensure!(told == held, "a latency tells of {told}, and its histogram holds {held}");
        }
        for name in &self.lower_bounds {
            ensure!(
                LOWER_BOUNDS.contains(&name.as_str()),
                "lower_bounds: {name:?} is none of {}",
                LOWER_BOUNDS.join(", ")
            );
        }
        Ok(Distribution { all, bounds })
    }

    /// The percentiles of [`PERCENTILES`], with the time of each, and whether it is only known to be at least so long.
    pub(super) fn percentiles(&self) -> [(f64, f64, bool); 5] {
        let times = [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.p99_99_us];
        std::array::from_fn(|number| (PERCENTILES[number], times[number], self.is_lower_bound(NAMES[number])))
    }

    /// Whether a figure is only known to be at least what it says.
    pub(super) fn is_lower_bound(&self, name: &str) -> bool {
        self.lower_bounds.iter().any(|bound| bound == name)
    }
}

fn encode(histogram: &Histogram<u64>) -> String {
    let mut encoded = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut encoded).expect("a vector takes everything");
    STANDARD.encode(encoded)
}

pub(super) fn decode(encoded: &str) -> anyhow::Result<Histogram<u64>> {
    let encoded = STANDARD.decode(encoded).context("a histogram is not Base64")?;
    let decoded: Histogram<u64> = Deserializer::new()
        .deserialize(&mut encoded.as_slice())
        .map_err(|error| anyhow::anyhow!("a histogram is damaged: {error}"))?;
    let mut histogram = histogram();
    histogram.add(decoded).map_err(|error| anyhow::anyhow!("a histogram is out of range: {error}"))?;
    Ok(histogram)
}

/// A time in microseconds as one reads it, with a sign if it is only known to be at least so long.
pub(super) fn show_at_least(micros: f64, at_least: bool) -> String {
    format!("{}{}", if at_least { ">" } else { "" }, show_micros(micros))
}

pub(super) use crate::values::show_micros;

/// Nanoseconds as microseconds.
pub(super) fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merged_histograms_equal_histogram_of_all_samples(
            left in prop::collection::vec(1u64..1_000_000_000_000, 0..200),
            right in prop::collection::vec(1u64..1_000_000_000_000, 0..200),
        ) {
            let of = |samples: &mut dyn Iterator<Item = &u64>| {
                let mut histogram = histogram();
                samples.for_each(|&sample| histogram.saturating_record(sample));
                histogram
            };
            let mut merged = Latency::from(&of(&mut left.iter())).decode().unwrap();
            merged.add(Latency::from(&of(&mut right.iter())).decode().unwrap()).unwrap();
            prop_assert_eq!(Latency::from(&merged), Latency::from(&of(&mut left.iter().chain(&right))));
        }
    }

    proptest! {
        #[test]
        fn percentiles_hold_whatever_the_bounds_would_have_become(
            samples in prop::collection::vec((1u64..1_000_000, any::<bool>(), 0u64..10_000_000), 1..60),
            percentile in 0.1f64..100.0,
        ) {
            let mut distribution = Distribution::new();
            let mut truth: Vec<u64> = Vec::new();
            for &(least, is_bound, more) in &samples {
                if is_bound {
                    distribution.record_bound(least, 1);
                    truth.push(least + more);
                } else {
                    distribution.record(least, 1);
                    truth.push(least);
                }
            }
            truth.sort_unstable();
            let rank = (percentile / 100.0 * truth.len() as f64).ceil().max(1.0) as usize;
            let truth = truth[rank - 1] as f64;
            match distribution.quantile(percentile) {
                Quantile::Is(value) => {
                    prop_assert!((value as f64 / truth - 1.0).abs() <= 0.012, "{} {}", value, truth);
                }
                Quantile::AtLeast(value) => prop_assert!(value as f64 <= truth * 1.002, "{} {}", value, truth),
            }
            let copy = Latency::from(&distribution).distribution().unwrap();
            prop_assert_eq!(copy, distribution);
        }
    }

    #[test]
    fn three_digits_are_kept_from_microseconds_to_minutes() {
        for nanoseconds in [1_000, 1_234, 999_000, 123_400_000, 300_000_000_000] {
            let mut histogram = histogram();
            histogram.saturating_record(nanoseconds);
            let told = histogram.value_at_percentile(50.0);
            assert!(told.abs_diff(nanoseconds) <= nanoseconds / 1000, "{told} {nanoseconds}");
        }
    }

    #[test]
    fn times_are_shown_with_three_digits() {
        for (micros, text) in
            [(0.0, "0.00 us"), (12.34, "12.3 us"), (999.0, "999 us"), (1234.0, "1.23 ms"), (2.5e6, "2.50 s")]
        {
            assert_eq!(show_micros(micros), text);
        }
    }

    #[test]
    fn damage_is_an_error() {
        let mut latency = Latency::from(&histogram());
        latency.histogram = "not Base64!".into();
        assert!(latency.decode().is_err());
        latency.histogram = STANDARD.encode(b"nothing that it should be");
        assert!(latency.decode().is_err());
    }
}
