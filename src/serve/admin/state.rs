//! The figures as JSON, with the state of every connection, for the live page.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::StatusSource;
use crate::reactor::{Activity, CloseReason, Counter, Counters, DatagramCounters};

/// Bytes that moved so long ago still count as movement: as long as the page takes from one look to the next.
const RECENT: Duration = Duration::from_millis(500);

/// Cells that the connections are shown in.
const CELLS: usize = 1024;

/// Connections of one cell that are looked at, so that a look takes a bounded time.
const LOOKS: usize = 64;

/// What the page is told.
#[derive(Debug, Serialize)]
struct State {
    version: &'static str,
    pid: u32,
    up: f64,
    asleep: f64,
    stopping: bool,
    max_connections: u64,
    connections: u64,
    refused: u64,
    messages: Option<u64>,
    resident: Option<u64>,
    counters: BTreeMap<&'static str, u64>,
    /// Connections closed, by reason.
    closed: BTreeMap<&'static str, u64>,
    datagrams: Option<BTreeMap<&'static str, u64>>,
    /// A letter for each cell: see [`letter`].
    cells: String,
    /// Slots that a cell stands for.
    slots_per_cell: usize,
}

/// The state of a server.
pub(super) fn json(now: Instant, server: &impl StatusSource) -> String {
    let snapshot = server.snapshot(now);
    let (cells, slots_per_cell) = cells(server.slots(), |place| server.activity(place, RECENT));
    let state = State {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        up: snapshot.up.as_secs_f64(),
        asleep: snapshot.asleep.as_secs_f64(),
        stopping: snapshot.stopping,
        max_connections: snapshot.max_connections,
        connections: snapshot.summary.counters.live(),
        refused: snapshot.summary.refusals.total(),
        messages: snapshot.messages,
        resident: super::resident_memory(),
        counters: values(Counters::TABLE, &snapshot.summary.counters),
        closed: CloseReason::ALL
            .iter()
            .zip(snapshot.summary.counters.closed)
            .map(|((name, _), it)| (*name, it))
            .collect(),
        datagrams: snapshot.summary.datagrams.map(|(counters, _)| values(DatagramCounters::TABLE, &counters)),
        cells,
        slots_per_cell,
    };
    // Plain figures and text cannot fail to be written.
    serde_json::to_string(&state).unwrap_or_default()
}

fn values<T>(table: &[Counter<T>], counters: &T) -> BTreeMap<&'static str, u64> {
    table.iter().map(|counter| (counter.name, (counter.get)(counters))).collect()
}

/// A letter for each cell, and the number of slots that it stands for. If that is more than one, the cell shows what
/// is most worth seeing among the first of them.
fn cells(places: usize, activity: impl Fn(usize) -> Option<Activity>) -> (String, usize) {
    let each = places.div_ceil(CELLS).max(1);
    let cell = |first: usize| (first..first + each.min(LOOKS)).filter_map(&activity).max();
    let mut text: String = (0..places).step_by(each).map(|first| letter(cell(first))).collect();
    text.truncate(text.trim_end_matches(letter(None)).len());
    (text, each)
}

fn letter(activity: Option<Activity>) -> char {
    match activity {
        None => '.',
        Some(Activity::Idle) => 'i',
        Some(Activity::Active) => 'a',
        Some(Activity::Closing) => 'c',
        Some(Activity::Waiting) => 'w',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_a_connection_or_the_most_telling_of_several() {
        let activity = [
            Some(Activity::Idle),
            None,
            Some(Activity::Waiting),
            Some(Activity::Active),
            Some(Activity::Closing),
            None,
        ];
        let look = |place: usize| activity.get(place).copied().flatten();
        assert_eq!(cells(6, look), ("i.wac".to_owned(), 1));
        assert_eq!(cells(0, look), (String::new(), 1));
        let (text, each) = cells(10 * CELLS, |place| look(place % 10));
        assert_eq!((text.as_str(), each), ("w".repeat(CELLS).as_str(), 10));
    }

    #[test]
    fn a_look_at_a_million_connections_takes_bounded_time() {
        let looks = std::cell::Cell::new(0);
        let (text, _) = cells(1_000_000, |_| {
            looks.set(looks.get() + 1);
            Some(Activity::Idle)
        });
        assert!(text.len() <= CELLS && looks.get() <= CELLS * LOOKS);
    }
}
