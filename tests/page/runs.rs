//! Runs as `bench --json` writes them, made up: those that take an hour, or need luck to happen.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use serde_json::{Value, json};

/// Samples of a second; each stands for several replies.
const SAMPLES: u64 = 200;

/// What happens in a second.
#[derive(Debug, Clone, Copy)]
pub struct Second {
    pub replies: u64,
    /// The median of the response time, in microseconds.
    pub median: f64,
    pub errors: u64,
}

/// A run like `base`, with these seconds; in an open loop the service time is two thirds of the response time.
pub fn run(base: &Value, name: &str, seconds: &[Second]) -> Value {
    let mut rng = Rng::with_seed(seconds.len() as u64 + seconds[0].median as u64);
    let (mut all, mut service) = (histogram(), histogram());
    let mut timeline = Vec::new();
    for (at, second) in seconds.iter().enumerate() {
        let mut here = histogram();
        let (each, more) = (second.replies / SAMPLES, second.replies % SAMPLES);
        for sample in 0..SAMPLES.min(second.replies) {
            // Log-normal, by the Box-Muller transform, with a long tail.
            let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
            let tail = if rng.f64() < 0.01 { 8.0 } else { 1.0 };
            let micros = second.median * (0.25 * normal).exp() * tail;
            let count = each + u64::from(sample < more);
            here.record_n((micros * 1e3) as u64, count).unwrap();
            service.record_n((micros * 2e3 / 3.0) as u64, count).unwrap();
        }
        all.add(&here).unwrap();
        timeline.push(json!({
            "at": at as f64, "seconds": 1.0, "replies": second.replies, "bytes": second.replies * 64, "connections": 50,
            "errors": second.errors, "response": latency(&here),
        }));
    }
    let (replies, length) = (all.len(), seconds.len() as f64);
    let errors: u64 = seconds.iter().map(|second| second.errors).sum();
    let mut run = base.clone();
    run["id"] = json!(format!("{:032x}", rng.u128(..)));
    run["name"] = json!(name);
    run["seconds"] = json!(length);
    run["config"]["duration"] = json!(length);
    run["rate"] = json!(replies as f64 / length);
    run["bytes_per_second"] = json!(replies as f64 * 64.0 / length);
    run["messages"] = json!({ "replies": replies, "bytes": replies * 64, "sent": replies + errors, "missed": 0,
        "unanswered": errors });
    run["outcomes"] = json!({ "due": replies + errors, "answered": replies, "answered_late": 0, "unanswered": 0,
        "failed": errors,
        "never_sent": { "connection_gone": 0, "generator_behind": 0, "end_reached": 0 } });
    run["response"] = latency(&all);
    if !run["service"].is_null() {
        run["config"]["rate"] = json!((replies + errors) as f64 / length);
        run["service"] = latency(&service);
    }
    if errors > 0 {
        run["errors"] =
            json!([{ "kind": "reset", "count": errors, "first": "127.0.0.1:7777: connection reset by peer" }]);
    }
    run["timeline"] = Value::Array(timeline);
    run
}

/// So many seconds of about the same.
pub fn steady(seconds: usize, replies: u64, median: f64) -> Vec<Second> {
    let mut rng = Rng::with_seed(replies);
    let mut about = |value: f64| value * (0.9 + 0.2 * rng.f64());
    (0..seconds).map(|_| Second { replies: about(replies as f64) as u64, median: about(median), errors: 0 }).collect()
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(600_000_000_000, 3).unwrap()
}

fn latency(histogram: &Histogram<u64>) -> Value {
    let mut encoded = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut encoded).unwrap();
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let at = |percentile: f64| micros(histogram.value_at_percentile(percentile));
    json!({
        "count": histogram.len(), "min_us": micros(histogram.min()), "mean_us": histogram.mean() / 1e3,
        "stdev_us": histogram.stdev() / 1e3, "p50_us": at(50.0), "p90_us": at(90.0), "p99_us": at(99.0),
        "p99_9_us": at(99.9), "p99_99_us": at(99.99), "max_us": micros(histogram.max()),
        "histogram": STANDARD.encode(encoded),
    })
}
