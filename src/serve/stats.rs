//! The lines in which a server reports its counters.

use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::HumanCount;
use log::info;

use super::access::Refusals;
use super::datagrams::DatagramCounters;
use crate::reactor::Counters;

/// What a server has done, from its start to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// What its event loop counted.
    pub counters: Counters,
    /// How often accepting had to pause for want of room or descriptors.
    pub accept_pauses: u64,
    /// Connections that were not let in.
    pub refusals: Refusals,
    /// What came and went over UDP, if anything could.
    pub datagrams: Option<(DatagramCounters, Refusals)>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counters { made, peak, bytes_in, bytes_out, partial_sends, failed, idle, stalled, aborted, .. } =
            self.counters;
        write!(
            f,
            "served {} connections (peak {}), {} in, {} out, {} partial sends, {} resets, {} idle, {} stalled, {} aborted, \
             {} accept pauses",
            HumanCount(made),
            HumanCount(peak),
            size(bytes_in),
            size(bytes_out),
            HumanCount(partial_sends),
            HumanCount(failed),
            HumanCount(idle),
            HumanCount(stalled),
            HumanCount(aborted),
            HumanCount(self.accept_pauses)
        )?;
        if self.refusals.total() > 0 {
            write!(f, ", {} refused ({})", HumanCount(self.refusals.total()), self.refusals)?;
        }
        if let Some((datagrams, refusals)) = &self.datagrams {
            write!(
                f,
                "; {} datagrams, {} in, {} sent back, {} out, {} dropped, {} failed",
                HumanCount(datagrams.received),
                size(datagrams.bytes_in),
                HumanCount(datagrams.sent),
                size(datagrams.bytes_out),
                HumanCount(datagrams.dropped),
                HumanCount(datagrams.failed)
            )?;
            if refusals.total() > 0 {
                write!(f, ", {} not answered ({refusals})", HumanCount(refusals.total()))?;
            }
        }
        Ok(())
    }
}

/// The line that is logged every so often.
pub(super) struct Stats {
    every: Duration,
    last: Instant,
    before: Summary,
}

impl Stats {
    pub fn new(every: Duration) -> Self {
        Stats { every, last: Instant::now(), before: Summary::default() }
    }

    /// When the next line is due.
    pub fn due(&self) -> Instant {
        self.last + self.every
    }

    /// Logs what has happened since the last line.
    pub fn log(&mut self, now: Instant, summary: Summary) {
        info!("{}", interval(&self.before, &summary, now - self.last));
        self.last = now;
        self.before = summary;
    }
}

/// One line on the time between two states of the counters.
fn interval(before: &Summary, after: &Summary, time: Duration) -> String {
    let per_second = |before: u64, after: u64| ((after - before) as f64 / time.as_secs_f64()).round() as u64;
    let (was, is) = (&before.counters, &after.counters);
    let turns = is.turns - was.turns;
    let mut line = format!(
        "{} connections, {} made/s, {} lost/s, {}/s in, {}/s out, {} partial sends, {} would-blocks, {} turns/s, {:.1} \
         events a turn",
        HumanCount(is.live()),
        HumanCount(per_second(was.made, is.made)),
        HumanCount(per_second(was.lost(), is.lost())),
        size(per_second(was.bytes_in, is.bytes_in)),
        size(per_second(was.bytes_out, is.bytes_out)),
        HumanCount(is.partial_sends - was.partial_sends),
        HumanCount(is.would_block - was.would_block),
        HumanCount(per_second(was.turns, is.turns)),
        if turns == 0 { 0.0 } else { (is.events - was.events) as f64 / turns as f64 },
    );
    let refused = after.refusals.total() - before.refusals.total();
    if refused > 0 {
        line += &format!(", {} refused", HumanCount(refused));
    }
    if let Some((is, _)) = &after.datagrams {
        let was = before.datagrams.map_or_else(DatagramCounters::default, |(was, _)| was);
        line += &format!(
            ", {} datagrams/s in, {}/s sent back",
            HumanCount(per_second(was.received, is.received)),
            HumanCount(per_second(was.sent, is.sent))
        );
    }
    line
}

fn size(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().iec()
}
