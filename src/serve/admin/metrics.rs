//! The figures for Prometheus, under names and with units as its guide has them ("Metric and label naming", prometheus.io).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::super::access::Refusal;
use super::super::fault::FaultCounters;
use super::exposition::{Exposition, Format};
use super::state::Census;
use super::{StatusSource, process};
use crate::build;
use crate::reactor::address::Endpoint;
use crate::reactor::{CloseReason, Counter, Counters, DatagramCounters, Kind, LIFETIMES, ListenerCounters, TURN_SIZES};

/// All figures of a server, which was started at `started`.
pub(super) fn text(now: Instant, started: SystemTime, server: &impl StatusSource, format: Format) -> String {
    let snapshot = server.snapshot(now);
    let (summary, mut out) = (&snapshot.summary, Exposition::new(format));
    let counters = &summary.counters;
    let commit = build::COMMIT.unwrap_or("unknown");
    out.info("echoloop_build", "The version that runs.", &[("version", build::VERSION), ("commit", commit)]);
    out.gauge("echoloop_up_seconds", "How long it has been running.", snapshot.up.as_secs_f64());
    out.gauge("echoloop_stopping", "Whether it has been asked to stop.", u8::from(snapshot.stopping));
    let listening: Vec<_> = snapshot.listening.iter().map(ToString::to_string).collect();
    let listening = listening.iter().map(|listener| (listener.as_str(), 1));
    out.gauges("echoloop_listening", "Where it listens at present.", "listener", listening);

    out.gauge("echoloop_connections", "Connections that are open.", counters.live());
    out.gauge("echoloop_connections_limit", "The most connections at once.", snapshot.max_connections);
    let help = "Whether accepting pauses for want of descriptors or memory.";
    out.gauge("echoloop_accept_paused", help, u8::from(snapshot.starved));
    let states = Census::take(server).states();
    out.gauges(
        "echoloop_connections_by_state",
        "Connections by what they do; beyond 65536, an estimate.",
        "state",
        states,
    );
    table(&mut out, "echoloop", Counters::TABLE, counters);
    let closed = CloseReason::ALL.iter().zip(counters.closed).map(|((name, _), count)| (*name, count));
    out.counters("echoloop_closed", "Connections closed.", "reason", closed);
    let bounds = LIFETIMES.map(|bound| bound.unwrap_or(f64::INFINITY));
    let (buckets, sum) = (bounds.into_iter().zip(counters.lifetimes), counters.lifetime_hundredths as f64 / 100.0);
    let help = "How long connections that are closed were open.";
    out.histogram("echoloop_connection_duration_seconds", help, buckets, sum);
    let refused = Refusal::OF_CONNECTIONS.map(|it| (it.name(), summary.refusals.of(it)));
    out.counters("echoloop_refused", "Connections that were not let in.", "reason", refused);
    if !snapshot.listeners.is_empty() {
        let of_each = |get: fn(&ListenerCounters) -> u64| {
            snapshot.listeners.iter().map(move |(name, counters)| (name.as_str(), get(counters)))
        };
        let (name, help) = ("echoloop_listener_accepted", "Connections accepted from each listener.");
        out.counters(name, help, "listener", of_each(|it| it.accepted));
        let (name, help) = ("echoloop_listener_refused", "Connections refused as they came, by listener.");
        out.counters(name, help, "listener", of_each(|it| it.refused));
        let (name, help) = ("echoloop_listener_connections", "Connections that are open, by listener.");
        out.gauges(name, help, "listener", of_each(|it| it.open));
    }
    if let Some(messages) = snapshot.messages {
        out.counter("echoloop_messages", "Messages echoed.", messages);
    }
    if let Some(unprinted) = snapshot.unprinted {
        let help = "Messages that were not printed, because their reader was too slow or had gone.";
        out.counter("echoloop_messages_unprinted", help, unprinted);
    }
    if let Some(overflows) = process::listen_overflows() {
        let help = "Connections dropped in a full backlog, of all listeners in this network namespace.";
        out.counter("echoloop_listen_overflows", help, overflows);
    }

    let bounds = TURN_SIZES.map(|bound| bound.map_or(f64::INFINITY, |bound| bound as f64));
    let buckets = bounds.into_iter().zip(counters.turn_sizes);
    out.histogram("echoloop_events_per_turn", "Readiness events in a turn.", buckets, counters.events);
    let (asleep, awake) = (snapshot.asleep, snapshot.up.saturating_sub(snapshot.asleep));
    out.counter("echoloop_asleep_seconds", "Time that the loop slept in the poll.", asleep.as_secs_f64());
    out.counter("echoloop_awake_seconds", "Time that the loop was at work.", awake.as_secs_f64());

    if let Some((datagrams, refusals)) = &summary.datagrams {
        table(&mut out, "echoloop_datagrams", DatagramCounters::TABLE, datagrams);
        let refused = Refusal::OF_DATAGRAMS.map(|it| (it.name(), refusals.of(it)));
        out.counters("echoloop_datagrams_refused", "Datagrams not answered.", "reason", refused);
        let ports: Vec<_> = snapshot
            .listening
            .iter()
            .filter_map(|endpoint| match endpoint {
                Endpoint::Udp(address) => Some((endpoint.to_string(), process::udp_drops(*address)?)),
                _ => None,
            })
            .collect();
        if !ports.is_empty() {
            let help = "Datagrams that the kernel dropped because the receive buffer was full.";
            let drops = ports.iter().map(|(listener, drops)| (listener.as_str(), *drops));
            out.counters("echoloop_datagrams_kernel_drops", help, "listener", drops);
        }
    }
    if let Some(faults) = &summary.faults {
        table(&mut out, "echoloop_faults", FaultCounters::TABLE, faults);
    }
    process_metrics(&mut out, started);
    out.finish()
}

/// What all of Prometheus' client libraries tell of a process, under the same names.
fn process_metrics(out: &mut Exposition, started: SystemTime) {
    out.counter("process_cpu_seconds", "Total user and system CPU time spent in seconds.", process::cpu_seconds());
    if let Some((resident, size)) = process::memory() {
        out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident);
        out.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", size);
    }
    if let Some(open) = process::open_descriptors() {
        out.gauge("process_open_fds", "Number of open file descriptors.", open);
    }
    let most = process::max_descriptors();
    if most.is_finite() {
        out.gauge("process_max_fds", "Maximum number of open file descriptors.", most);
    }
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    out.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", started);
}

/// All counters of a table.
fn table<T>(out: &mut Exposition, prefix: &str, table: &[Counter<T>], counters: &T) {
    for counter in table {
        let (name, help) = (format!("{prefix}_{}", counter.name), format!("{}.", counter.help.trim_end_matches('.')));
        let value = (counter.get)(counters);
        match counter.kind {
            Kind::Total => out.counter(&name, &help, value),
            Kind::Gauge => out.gauge(&name, &help, value),
        }
    }
}
