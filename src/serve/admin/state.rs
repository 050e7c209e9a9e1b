//! The figures as JSON, with the state of every connection, for the live page.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::access::{Refusal, Refusals};
use super::super::fault::FaultCounters;
use super::{StatusSource, process};
use crate::reactor::{Activity, CloseReason, Counter, Counters, DatagramCounters, ListenerCounters, TURN_SIZES};

/// How long ago bytes may have moved to count as movement: the time from one look of the page to the next.
const RECENT: Duration = Duration::from_millis(500);

/// Cells that the connections are shown in.
const CELLS: usize = 1024;

/// Connections of one cell that are looked at, so that a look takes a bounded time.
const LOOKS: usize = 64;

/// Connections that are looked at to count what they do.
const COUNTED: usize = 65_536;

/// What the page is told.
#[derive(Debug, Serialize)]
struct State {
    version: &'static str,
    pid: u32,
    up: f64,
    asleep: f64,
    stopping: bool,
    /// Accepting pauses for want of descriptors or memory.
    starved: bool,
    max_connections: u64,
    connections: u64,
    /// Where it listens at present.
    listening: Vec<String>,
    /// What came of each listener for connections.
    listeners: Vec<Listener>,
    /// Connections by what they do, and whether each was looked at.
    states: BTreeMap<&'static str, u64>,
    states_exact: bool,
    /// Connections that were not let in: all, and by reason.
    refused: u64,
    refusals: BTreeMap<&'static str, u64>,
    messages: Option<u64>,
    /// Messages that could not be printed, if they were to be.
    unprinted: Option<u64>,
    resident: Option<u64>,
    counters: BTreeMap<&'static str, u64>,
    /// Connections closed, by reason.
    closed: BTreeMap<&'static str, u64>,
    /// Turns by the number of their events: what each class is called, and how many there were.
    turn_sizes: Vec<(String, u64)>,
    datagrams: Option<BTreeMap<&'static str, u64>>,
    /// Datagrams that were received and not sent back, by reason.
    not_sent_back: BTreeMap<&'static str, u64>,
    /// What was done wrong on request, if anything was to be.
    faults: Option<BTreeMap<&'static str, u64>>,
    /// A letter for each cell: see [`letter`].
    cells: String,
    /// Slots that a cell stands for.
    slots_per_cell: usize,
}

#[derive(Debug, Serialize)]
struct Listener {
    name: String,
    accepted: u64,
    refused: u64,
    connections: u64,
}

/// The state of a server.
pub(super) fn json(now: Instant, server: &impl StatusSource) -> String {
    let snapshot = server.snapshot(now);
    let (cells, slots_per_cell) = cells(server.slots(), |place| server.activity(place, RECENT));
    let census = Census::take(server);
    let summary = &snapshot.summary;
    let state = State {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        up: snapshot.up.as_secs_f64(),
        asleep: snapshot.asleep.as_secs_f64(),
        stopping: snapshot.stopping,
        starved: snapshot.starved,
        max_connections: snapshot.max_connections,
        connections: snapshot.summary.counters.live(),
        listening: snapshot.listening.iter().map(ToString::to_string).collect(),
        listeners: snapshot
            .listeners
            .iter()
            .map(|(name, ListenerCounters { accepted, refused, open })| Listener {
                name: name.clone(),
                accepted: *accepted,
                refused: *refused,
                connections: *open,
            })
            .collect(),
        states: census.states().into_iter().collect(),
        states_exact: census.is_exact(),
        refused: summary.refusals.total(),
        refusals: by_reason(&Refusal::OF_CONNECTIONS, &summary.refusals).collect(),
        messages: snapshot.messages,
        unprinted: snapshot.unprinted,
        resident: process::memory().map(|(resident, _)| resident),
        counters: values(Counters::TABLE, &snapshot.summary.counters),
        closed: CloseReason::ALL
            .iter()
            .zip(snapshot.summary.counters.closed)
            .map(|((name, _), it)| (*name, it))
            .collect(),
        turn_sizes: turn_sizes(&summary.counters),
        not_sent_back: summary.datagrams.map_or_else(BTreeMap::new, |(counters, refusals)| {
            let lost = [("queue_full", counters.dropped), ("failed", counters.failed)];
            by_reason(&Refusal::OF_DATAGRAMS, &refusals).chain(lost).collect()
        }),
        datagrams: snapshot.summary.datagrams.map(|(counters, _)| values(DatagramCounters::TABLE, &counters)),
        faults: snapshot.summary.faults.map(|counters| values(FaultCounters::TABLE, &counters)),
        cells,
        slots_per_cell,
    };
    // Plain figures and text cannot fail to be written.
    serde_json::to_string(&state).unwrap_or_default()
}

fn values<T>(table: &[Counter<T>], counters: &T) -> BTreeMap<&'static str, u64> {
    table.iter().map(|counter| (counter.name, (counter.get)(counters))).collect()
}

fn by_reason<'a>(reasons: &'a [Refusal], refusals: &'a Refusals) -> impl Iterator<Item = (&'static str, u64)> + 'a {
    reasons.iter().map(|&reason| (reason.name(), refusals.of(reason)))
}

fn turn_sizes(counters: &Counters) -> Vec<(String, u64)> {
    let mut from = 0;
    let classes = TURN_SIZES.into_iter().zip(counters.turn_sizes).map(|(bound, count)| {
        let name = match bound {
            Some(bound) if bound == from => bound.to_string(),
            Some(bound) => format!("{from} to {bound}"),
            None => format!("{from} and more"),
        };
        from = bound.map_or(from, |bound| bound + 1);
        (name, count)
    });
    classes.collect()
}

/// How many connections do what. Each is looked at as long as that takes a bounded time, and some of them beyond.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// By [`Activity`].
    counts: [u64; 4],
    /// Slots that each of those looked at stands for.
    each: usize,
}

impl Census {
    /// Counts a server's connections.
    pub fn take(server: &impl StatusSource) -> Self {
        Census::of(server.slots(), |slot| server.activity(slot, RECENT))
    }

    fn of(slots: usize, activity: impl Fn(usize) -> Option<Activity>) -> Self {
        let each = slots.div_ceil(COUNTED).max(1);
        let mut census = Census { counts: [0; 4], each };
        for activity in (0..slots).step_by(each).filter_map(activity) {
            census.counts[activity as usize] += each as u64;
        }
        census
    }

    pub fn states(&self) -> [(&'static str, u64); 4] {
        [Activity::Idle, Activity::Active, Activity::Closing, Activity::Waiting]
            .map(|activity| (name(activity), self.counts[activity as usize]))
    }

    pub fn is_exact(&self) -> bool {
        self.each == 1
    }
}

fn name(activity: Activity) -> &'static str {
    match activity {
        Activity::Idle => "idle",
        Activity::Active => "active",
        Activity::Closing => "closing",
        Activity::Waiting => "waiting",
    }
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
    fn cell_shows_most_telling_of_its_connections() {
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
    fn look_at_million_connections_takes_bounded_time() {
        let looks = std::cell::Cell::new(0);
        let (text, _) = cells(1_000_000, |_| {
            looks.set(looks.get() + 1);
            Some(Activity::Idle)
        });
        assert!(text.len() <= CELLS && looks.get() <= CELLS * LOOKS);
    }

    #[test]
    fn states_are_counted_exactly_or_estimated() {
        let activity = [Some(Activity::Idle), None, Some(Activity::Waiting), Some(Activity::Idle)];
        let few = Census::of(4, |slot| activity[slot]);
        assert_eq!(few.states(), [("idle", 2), ("active", 0), ("closing", 0), ("waiting", 1)]);
        assert!(few.is_exact());
        let looks = std::cell::Cell::new(0);
        let many = Census::of(1_000_000, |_| {
            looks.set(looks.get() + 1);
            Some(Activity::Active)
        });
        assert!(looks.get() <= COUNTED && !many.is_exact());
        let [_, (_, active), ..] = many.states();
        assert!((999_000..1_001_000).contains(&active), "{active}");
    }

    #[test]
    fn classes_of_turns_have_names() {
        let names: Vec<_> = turn_sizes(&Counters::default()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["0", "1", "2 to 4", "5 to 16"]);
        assert_eq!(names.last().unwrap(), "1025 and more");
    }
}
