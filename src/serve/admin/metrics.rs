//! The figures as OpenMetrics text, for Prometheus and whatever else scrapes (openmetrics.io, version 1.0).

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::super::access::Refusal;
use super::Snapshot;
use crate::reactor::TURN_SIZES;

/// The media type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures of a snapshot.
pub(super) fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut out = String::new();
    // Writing to memory does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

/// One metric after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: impl EncodeCounterValue) -> fmt::Result {
        let value = ConstCounter::new(value);
        value.encode(self.0.encode_descriptor(name, help, unit, MetricType::Counter)?)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        let value = ConstGauge::new(value);
        value.encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    /// One counter for each reason.
    fn by_reason<'b>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (&'b str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, value) in values {
            let labels = [("reason", reason)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut write = Writer(encoder);
        let summary = &self.summary;
        let counters = &summary.counters;
        let mut build = write.0.encode_descriptor("echoloop_build", "The version that runs", None, MetricType::Info)?;
        build.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        write.gauge("echoloop_up", "How long it has been running", Some(&Unit::Seconds), self.up.as_secs_f64())?;

        write.gauge("echoloop_connections", "Connections there are", None, counters.live() as f64)?;
        write.gauge("echoloop_connections_limit", "The most at once", None, self.max_connections as f64)?;
        write.counter("echoloop_accepted", "Connections accepted", None, counters.made)?;
        let closed = [
            ("finished", counters.finished),
            ("failed", counters.failed),
            ("idle", counters.idle),
            ("stalled", counters.stalled),
            ("aborted", counters.aborted),
            ("refused", counters.refused),
        ];
        write.by_reason("echoloop_closed", "Connections closed", closed)?;
        let refused = Refusal::OF_CONNECTIONS.map(|it| (it.name(), summary.refusals.of(it)));
        write.by_reason("echoloop_refused", "Connections not let in", refused)?;
        write.counter(
            "echoloop_accept_pauses",
            "Times that accepting paused for want of room or descriptors",
            None,
            summary.accept_pauses,
        )?;

        let bytes = Some(&Unit::Bytes);
        write.counter("echoloop_received", "Received over streams", bytes, counters.bytes_in)?;
        write.counter("echoloop_sent", "Sent over streams", bytes, counters.bytes_out)?;
        write.gauge("echoloop_waiting", "Waiting until sockets are WRITABLE", bytes, counters.waiting as f64)?;
        if let Some(messages) = self.messages {
            write.counter("echoloop_messages", "Messages echoed", None, messages)?;
        }
        write.counter("echoloop_partial_sends", "Sends that took a part", None, counters.partial_sends)?;
        write.counter("echoloop_would_blocks", "Reads that found nothing", None, counters.would_block)?;

        write.counter("echoloop_turns", "Turns of the event loop", None, counters.turns)?;
        write.counter("echoloop_events", "Readiness events of connections", None, counters.events)?;
        let bounds = TURN_SIZES.map(|bound| bound.map_or(f64::INFINITY, |bound| bound as f64));
        let buckets: Vec<_> = bounds.into_iter().zip(counters.turn_sizes).collect();
        write
            .0
            .encode_descriptor("echoloop_events_per_turn", "Readiness events in a turn", None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(counters.events as f64, counters.turns, &buckets, None)?;
        let seconds = Some(&Unit::Seconds);
        let (asleep, awake) = (self.asleep, self.up.saturating_sub(self.asleep));
        write.counter("echoloop_asleep", "Time in the poll", seconds, asleep.as_secs_f64())?;
        write.counter("echoloop_awake", "Time at work", seconds, awake.as_secs_f64())?;

        if let Some((datagrams, refusals)) = &summary.datagrams {
            write.counter("echoloop_datagrams_received", "Datagrams received", None, datagrams.received)?;
            write.counter("echoloop_datagrams_sent", "Datagrams sent back", None, datagrams.sent)?;
            write.counter("echoloop_datagram_received", "Received in datagrams", bytes, datagrams.bytes_in)?;
            write.counter("echoloop_datagram_sent", "Sent in datagrams", bytes, datagrams.bytes_out)?;
            let unanswered = Refusal::OF_DATAGRAMS.map(|it| (it.name(), refusals.of(it)));
            let lost = [("queue_full", datagrams.dropped), ("failed", datagrams.failed)];
            let unanswered = unanswered.into_iter().chain(lost);
            write.by_reason("echoloop_datagrams_unanswered", "Datagrams not sent back", unanswered)?;
        }
        if let Some(resident) = super::resident_memory() {
            write.gauge("process_resident_memory", "Resident memory", bytes, resident as f64)?;
        }
        Ok(())
    }
}
