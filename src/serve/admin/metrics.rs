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
use crate::reactor::{CloseReason, Counter, Counters, DatagramCounters, Kind, TURN_SIZES};

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

    /// All counters of a table.
    fn table<T>(&mut self, prefix: &str, table: &[Counter<T>], counters: &T) -> fmt::Result {
        for counter in table {
            let name = format!("{prefix}_{}", counter.name.trim_end_matches("_bytes"));
            let unit = counter.is_bytes().then_some(&Unit::Bytes);
            let value = (counter.get)(counters);
            match counter.kind {
                Kind::Total => self.counter(&name, counter.help, unit, value)?,
                Kind::Gauge => self.gauge(&name, counter.help, unit, value as f64)?,
            }
        }
        Ok(())
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
        write.table("echoloop", Counters::TABLE, counters)?;
        let closed = CloseReason::ALL.iter().zip(counters.closed).map(|((name, _), count)| (*name, count));
        write.by_reason("echoloop_closed", "Connections closed", closed)?;
        let refused = Refusal::OF_CONNECTIONS.map(|it| (it.name(), summary.refusals.of(it)));
        write.by_reason("echoloop_refused", "Connections not let in", refused)?;
        if let Some(messages) = self.messages {
            write.counter("echoloop_messages", "Messages echoed", None, messages)?;
        }

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
            write.table("echoloop_datagrams", DatagramCounters::TABLE, datagrams)?;
            let unanswered = Refusal::OF_DATAGRAMS.map(|it| (it.name(), refusals.of(it)));
            write.by_reason("echoloop_datagrams_refused", "Datagrams not answered", unanswered)?;
        }
        if let Some(resident) = super::resident_memory() {
            write.gauge("process_resident_memory", "Resident memory", Some(&Unit::Bytes), resident as f64)?;
        }
        Ok(())
    }
}
