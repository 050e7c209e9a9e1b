//! Latencies: recorded in nanoseconds in HdrHistograms, added up, and summed up in a few numbers.
//!
//! Percentiles are never averaged: what several intervals or machines have measured is added as histograms (G. Tene,
//! "How NOT to measure latency", 2013). This module does not know what is measured.

use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Significant decimal digits that are kept of each value.
const DIGITS: u8 = 3;

/// The longest latency that is told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(600);

/// The percentiles that reports show.
pub(super) const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// An empty histogram of nanoseconds, up to ten minutes.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST.as_nanos() as u64, DIGITS).expect("the bounds are valid")
}

/// What is known of a set of latencies. Times are in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
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
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        let percentile = |p| micros(histogram.value_at_percentile(p));
        let [p50_us, p90_us, p99_us, p99_9_us, p99_99_us] = PERCENTILES.map(percentile);
        let mut encoded = Vec::new();
        V2DeflateSerializer::new().serialize(histogram, &mut encoded).expect("a vector takes everything");
        Latency {
            count: histogram.len(),
            min_us: micros(histogram.min()),
            mean_us: histogram.mean() / 1000.0,
            stdev_us: histogram.stdev() / 1000.0,
            p50_us,
            p90_us,
            p99_us,
            p99_9_us,
            p99_99_us,
            max_us: micros(histogram.max()),
            histogram: STANDARD.encode(encoded),
        }
    }
}

impl Latency {
    /// The histogram, in nanoseconds.
    ///
    /// # Errors
    ///
    /// If the encoding is damaged.
    pub fn decode(&self) -> anyhow::Result<Histogram<u64>> {
        let encoded = STANDARD.decode(&self.histogram).context("a histogram is not Base64")?;
        let decoded: Histogram<u64> = Deserializer::new()
            .deserialize(&mut encoded.as_slice())
            .map_err(|error| anyhow::anyhow!("a histogram is damaged: {error}"))?;
        let mut histogram = histogram();
        histogram.add(decoded).map_err(|error| anyhow::anyhow!("a histogram is out of range: {error}"))?;
        Ok(histogram)
    }

    /// The percentiles of [`PERCENTILES`], with the time of each.
    pub(super) fn percentiles(&self) -> [(f64, f64); 5] {
        let times = [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.p99_99_us];
        std::array::from_fn(|number| (PERCENTILES[number], times[number]))
    }
}

/// Nanoseconds as microseconds.
pub(super) fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

/// A time in microseconds as one reads it: three digits and a unit.
pub(super) fn show_micros(micros: f64) -> String {
    let (value, unit) = match micros {
        _ if micros >= 1e6 => (micros / 1e6, "s"),
        _ if micros >= 1e3 => (micros / 1e3, "ms"),
        _ => (micros, "us"),
    };
    let decimals = match value {
        _ if value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merged_histograms_are_the_histogram_of_the_merged_samples(
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

    #[test]
    fn from_a_microsecond_to_minutes_three_digits_are_kept() {
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
