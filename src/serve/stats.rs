//! The lines in which a server reports its counters.

use std::time::Duration;

use bytesize::ByteSize;
use indicatif::HumanCount;

use super::access::Refusals;
use super::datagrams::DatagramCounters;
use crate::reactor::Counters;

/// What a server has done, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        let Counters { made, peak, bytes_in, bytes_out, partial_sends, failed, idle, stalled, cut, .. } = self.counters;
        write!(
            f,
            "served {} connections (peak {}), {} in, {} out, {} partial sends, {} resets, {} idle, {} stalled, {} cut, \
             {} accept pauses",
            HumanCount(made),
            HumanCount(peak),
            size(bytes_in),
            size(bytes_out),
            HumanCount(partial_sends),
            HumanCount(failed),
            HumanCount(idle),
            HumanCount(stalled),
            HumanCount(cut),
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

/// One line on the time between two states of the counters.
pub(super) fn interval(before: &Counters, after: &Counters, time: Duration) -> String {
    let per_second = |before: u64, after: u64| ((after - before) as f64 / time.as_secs_f64()).round() as u64;
    let turns = after.turns - before.turns;
    format!(
        "{} connections, {} made/s, {} lost/s, {}/s in, {}/s out, {} partial sends, {} would-blocks, {} turns/s, {:.1} \
         events a turn",
        HumanCount(after.live()),
        HumanCount(per_second(before.made, after.made)),
        HumanCount(per_second(before.lost(), after.lost())),
        size(per_second(before.bytes_in, after.bytes_in)),
        size(per_second(before.bytes_out, after.bytes_out)),
        HumanCount(after.partial_sends - before.partial_sends),
        HumanCount(after.would_block - before.would_block),
        HumanCount(per_second(before.turns, after.turns)),
        if turns == 0 { 0.0 } else { (after.events - before.events) as f64 / turns as f64 },
    )
}

fn size(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().iec()
}
