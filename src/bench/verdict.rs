//! What a run's account says of the server and of the generator: whether the rate was kept, and who was the limit.

use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::HumanCount;

use super::clock::seconds;
use super::config::Config;
use super::driver::Outcome;
use super::latency::{micros, show_micros};
use super::ledger::LATE;
use super::summary::{Limit, Outcomes, RateKept, Search};
use crate::count::counted;
use crate::values::show_number;

/// The share of the messages that may be late or missing before a rate counts as not kept.
const TOLERANCE: f64 = 0.01;

/// Messages that may be missing in any case: of a handful, the one that is on its way at the end is many percent.
const MIN_MISSING: f64 = 3.0;

/// The shortest window of which a share of its time says something.
const MIN_WINDOW: f64 = 0.1;

/// A generator that has something to do for more than such a part of the time does not wait for the server.
const SATURATED: f64 = 0.95;

/// Whether the rate of an open loop was kept: all that was due answered in time, and as fast as it was due. `None` in a
/// closed loop.
pub(super) fn rate(outcome: &Outcome) -> Option<RateKept> {
    let (ledger, asked) = (&outcome.ledger, outcome.asked?);
    let Outcomes { due, answered, never_sent, .. } = ledger.outcomes;
    let length = due as f64 / asked;
    let reached = ledger.rate_of_schedule(length);
    // What is missing because it was not answered in time, or because its answers came more slowly than it was due.
    let missing = ((due - answered) as f64).max((1.0 - reached / asked) * due as f64);
    let tolerated = (due as f64 * TOLERANCE).max(MIN_MISSING.min(due as f64 / 2.0));
    if missing <= tolerated {
        let text = "the rate was kept".to_owned();
        return Some(RateKept { kept: true, limit: None, text });
    }
    // That messages left late explains it only if that is most of what they took.
    let median = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.5);
    let slow = ledger.lateness().is_some_and(|lateness| median(lateness) * 2 > median(ledger.response().all()));
    let own = (never_sent.generator_behind + if slow { ledger.late() } else { 0 }) as f64;
    let (limit, who) = match () {
        () if own >= missing / 2.0 => (Some(Limit::Generator), "the generator was the limit, and not the server"),
        () if never_sent.connection_gone as f64 >= missing / 2.0 => (Some(Limit::Connections), "connections were gone"),
        () if outcome.abandoned => (None, "a signal ended the waiting for the last replies"),
        () if busy(outcome) > SATURATED => (
            Some(Limit::Generator),
            "the generator never waited for the server, so it was the limit, or the machine that both run on",
        ),
        () => (Some(Limit::Server), "the server was the limit"),
    };
    let text = format!(
        "the rate was not kept: {} of {} answered in time, {}/s of {}/s; {who}",
        HumanCount(answered),
        counted(due, "message"),
        show_number(reached.min(asked)),
        show_number(asked)
    );
    Some(RateKept { kept: false, limit, text })
}

/// The part of the window in which the generator had something to do; 0 if the window is too short to tell.
fn busy(outcome: &Outcome) -> f64 {
    let window = outcome.ledger.seconds();
    if window < MIN_WINDOW { 0.0 } else { 1.0 - seconds(outcome.idle) / window }
}

/// Where the generator itself may have been the limit, or what it measured was itself.
pub(super) fn warnings(config: &Config, outcome: &Outcome) -> Vec<String> {
    let ledger = &outcome.ledger;
    let mut warnings = Vec::new();
    let busy = busy(outcome);
    if busy > SATURATED {
        warnings.push(format!(
            "the generator was busy {:.0} % of the time, so it may have been the limit, and not the server: share the load \
             among several processes, and add up what they report (echoloop report --merge)",
            busy * 100.0
        ));
    }
    let Outcomes { due, never_sent, .. } = ledger.outcomes;
    let late = ledger.late() as f64 / (due - never_sent.sum()).max(1) as f64;
    let behind = never_sent.generator_behind;
    if late > TOLERANCE || behind as f64 > (due as f64 * TOLERANCE).max(MIN_MISSING) {
        let behind = if behind > 0 { format!(", and {} never", HumanCount(behind)) } else { String::new() };
        let kept = rate(outcome).is_none_or(|rate| rate.limit != Some(Limit::Generator));
        let what = if kept { "the schedule slipped" } else { "the generator was the limit, and not the server" };
        warnings.push(format!(
            "{what}: {:.1} % of the messages left more than {} after they were due, with their connections free{behind}. \
             Share the load among several processes, and add up what they report (echoloop report --merge)",
            late * 100.0,
            show_micros(micros(LATE))
        ));
    }
    let explained = explained(config, outcome);
    if let Some(last) = explained.last() {
        let all = match &explained[..] {
            [_] => last.clone(),
            all => format!("{} and {last}", all[..all.len() - 1].join(", ")),
        };
        warnings.push(format!(
            "the generator itself stood still for up to {}, which can explain {all}",
            show_micros(micros(outcome.stalls.gaps().max()))
        ));
    }
    warnings
}

/// Which of the percentiles shown the generator's own stalls can explain.
pub(super) fn explained(config: &Config, outcome: &Outcome) -> Vec<String> {
    let ledger = &outcome.ledger;
    let in_flight = ledger.service().is_none().then(|| config.depth * config.connections as u64);
    let window = Duration::from_secs_f64(ledger.seconds()).as_nanos() as u64;
    outcome.stalls.explain(ledger.response(), window, in_flight)
}

/// Whether a search ended where the generator was slow, and not only the server.
pub(super) fn limited_search(search: &Search) -> Option<String> {
    let end = search.fails_at?;
    let late = search.steps.iter().filter(|step| step.rate == end && !step.holds).all(|step| step.late > 0);
    late.then(|| {
        format!(
            "at {}/s the generator itself was late with some messages, so the server may hold more than was found",
            show_number(end)
        )
    })
}
