//! The figures that a comparison looks at.

use indicatif::{BinaryBytes, HumanCount};
use serde::{Deserialize, Serialize};

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Measure {
    /// Replies per second.
    #[serde(rename = "rate")]
    Rate,
    #[serde(rename = "p50_us")]
    P50,
    #[serde(rename = "p99_us")]
    P99,
    #[serde(rename = "p99_9_us")]
    P999,
    /// Processor time of the server for each message, in microseconds.
    #[serde(rename = "cpu_us")]
    Cpu,
    /// Resident memory of the server for each connection.
    #[serde(rename = "bytes_per_connection")]
    Memory,
    /// Bytes per second of the bulk beside the messages that are measured.
    #[serde(rename = "bulk_bytes_per_second")]
    Bulk,
    /// Until all had their echo, in milliseconds.
    #[serde(rename = "all_echoed_ms")]
    AllEchoed,
    /// What resident memory grew by, in bytes.
    #[serde(rename = "growth_bytes")]
    Growth,
}

impl Measure {
    /// What it is called, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Measure::Rate => "messages/s",
            Measure::P50 => "p50 us",
            Measure::P99 => "p99 us",
            Measure::P999 => "p99.9 us",
            Measure::Cpu => "CPU us/message",
            Measure::Memory => "B/connection",
            Measure::Bulk => "bulk B/s",
            Measure::AllEchoed => "ms until all",
            Measure::Growth => "growth",
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Measure::Rate | Measure::Bulk)
    }

    /// Whether it may be nothing, so that a ratio tells nothing.
    pub fn is_absolute(self) -> bool {
        matches!(self, Measure::Memory | Measure::Growth)
    }

    /// A number of it, with as many digits as tell something.
    pub fn show(self, number: f64) -> String {
        match self {
            Measure::Bulk => format!("{}/s", BinaryBytes(number as u64)),
            Measure::Growth => BinaryBytes(number.max(0.0) as u64).to_string(),
            _ if number >= 100.0 => HumanCount(number as u64).to_string(),
            _ if number >= 10.0 => format!("{number:.1}"),
            _ => format!("{number:.2}"),
        }
    }
}
