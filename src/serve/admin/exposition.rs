//! Figures as text for Prometheus and whatever else scrapes: its own format, version 0.0.4 ("Exposition formats",
//! prometheus.io), or OpenMetrics 1.0 (openmetrics.io) for those who ask for it. They differ in names and endings.

use std::fmt::{Display, Write};

/// How figures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    OpenMetrics,
}

impl Format {
    /// The media type of the text.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One metric after the other.
#[derive(Debug)]
pub(super) struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    pub fn new(format: Format) -> Self {
        Exposition { format, text: String::with_capacity(8 * 1024) }
    }

    /// A number that only grows; of its name, `_total` is added.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "_total", "counter", help);
        self.line(format_args!("{name}_total {value}"));
    }

    /// One such number for each value of a label.
    pub fn counters<'a, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.family(name, "_total", "counter", help);
        for (which, value) in values {
            self.line(format_args!("{name}_total{{{label}=\"{}\"}} {value}", escaped(which)));
        }
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "", "gauge", help);
        self.line(format_args!("{name} {value}"));
    }

    /// One such number for each value of a label.
    pub fn gauges<'a, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.family(name, "", "gauge", help);
        for (which, value) in values {
            self.line(format_args!("{name}{{{label}=\"{}\"}} {value}", escaped(which)));
        }
    }

    /// Facts that do not change; of its name, `_info` is added.
    pub fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        let kind = if self.format == Format::Text { "gauge" } else { "info" };
        self.family(name, "_info", kind, help);
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        self.line(format_args!("{name}_info{{{}}} 1", labels.join(",")));
    }

    /// How often a value was at most each bound, and no more than the one before; the last bound is infinity.
    pub fn histogram(
        &mut self,
        name: &str,
        help: &str,
        buckets: impl IntoIterator<Item = (f64, u64)>,
        sum: impl Display,
    ) {
        self.family(name, "", "histogram", help);
        let mut count = 0;
        for (bound, more) in buckets {
            count += more;
            let bound = match self.format {
                _ if bound.is_infinite() => "+Inf".to_owned(),
                Format::Text => bound.to_string(),
                Format::OpenMetrics => format!("{bound:?}"),
            };
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        self.line(format_args!("{name}_sum {sum}"));
        self.line(format_args!("{name}_count {count}"));
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// What is said of a metric before its values. OpenMetrics has the name without the ending of its values.
    fn family(&mut self, name: &str, ending: &str, kind: &str, help: &str) {
        let of_values = if self.format == Format::Text { ending } else { "" };
        self.line(format_args!("# HELP {name}{of_values} {help}"));
        self.line(format_args!("# TYPE {name}{of_values} {kind}"));
        if self.format == Format::OpenMetrics
            && let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")))
        {
            self.line(format_args!("# UNIT {name} {unit}"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// The value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(format: Format) -> String {
        let mut out = Exposition::new(format);
        out.info("echo_build", "The build", &[("version", "1\n\"\\")]);
        out.counter("echo_sent_bytes", "Bytes sent", 7);
        out.counters("echo_closed", "Closed", "reason", [("idle", 1), ("failed", 2)]);
        out.gauge("echo_up_seconds", "Since the start", 1.5);
        out.histogram("echo_size", "Sizes", [(1.0, 2), (4.0, 0), (f64::INFINITY, 3)], 99);
        out.finish()
    }

    #[test]
    fn each_format_has_its_names_and_endings() {
        let text = r#"# HELP echo_build_info The build
# TYPE echo_build_info gauge
echo_build_info{version="1\n\"\\"} 1
# HELP echo_sent_bytes_total Bytes sent
# TYPE echo_sent_bytes_total counter
echo_sent_bytes_total 7
# HELP echo_closed_total Closed
# TYPE echo_closed_total counter
echo_closed_total{reason="idle"} 1
echo_closed_total{reason="failed"} 2
# HELP echo_up_seconds Since the start
# TYPE echo_up_seconds gauge
echo_up_seconds 1.5
# HELP echo_size Sizes
# TYPE echo_size histogram
echo_size_bucket{le="1"} 2
echo_size_bucket{le="4"} 2
echo_size_bucket{le="+Inf"} 5
echo_size_sum 99
echo_size_count 5
"#;
        assert_eq!(some(Format::Text), text);
        let open_metrics = text
            .replace("HELP echo_build_info", "HELP echo_build")
            .replace("TYPE echo_build_info gauge", "TYPE echo_build info")
            .replace("HELP echo_sent_bytes_total", "HELP echo_sent_bytes")
            .replace("TYPE echo_sent_bytes_total counter", "TYPE echo_sent_bytes counter\n# UNIT echo_sent_bytes bytes")
            .replace("HELP echo_closed_total", "HELP echo_closed")
            .replace("TYPE echo_closed_total", "TYPE echo_closed")
            .replace("echo_up_seconds gauge", "echo_up_seconds gauge\n# UNIT echo_up_seconds seconds")
            .replace("le=\"1\"", "le=\"1.0\"")
            .replace("le=\"4\"", "le=\"4.0\"");
        assert_eq!(some(Format::OpenMetrics), open_metrics + "# EOF\n");
    }
}
