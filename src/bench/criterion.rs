//! What `--fail-if` and `--find-rate` ask: `p99<5ms`, `rate>=100000`, `errors>0`.
//!
//! Messages that were not answered meet no bound, and a criterion without data does not pass.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Run;
use super::latency::{Distribution, micros, show_at_least, show_micros};
use crate::count::counted;
use crate::values;

/// A comparison of a run's figure with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Criterion {
    figure: Figure,
    comparison: Comparison,
    /// In microseconds, if the figure is a time.
    value: f64,
}

/// What is judged.
pub(super) struct Figures<'a> {
    /// Response times.
    pub response: &'a Distribution,
    /// Replies per second.
    pub rate: f64,
    pub errors: u64,
    pub mismatches: u64,
    pub missed: u64,
    pub lost: u64,
    pub connections: u64,
}

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Figure {
    /// A percentile of the response time, more than 0 and at most 100.
    Percentile(f64),
    Mean,
    Max,
    Rate,
    Errors,
    Mismatches,
    Missed,
    Lost,
    Connections,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

const FIGURES: [(&str, Figure); 8] = [
    ("mean", Figure::Mean),
    ("max", Figure::Max),
    ("rate", Figure::Rate),
    ("errors", Figure::Errors),
    ("mismatches", Figure::Mismatches),
    ("missed", Figure::Missed),
    ("lost", Figure::Lost),
    ("connections", Figure::Connections),
];

/// Longer ones first, for one begins with the other.
const COMPARISONS: [(&str, Comparison); 4] = [
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::MoreOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::More),
];

impl FromStr for Criterion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = COMPARISONS.iter().filter_map(|&(sign, comparison)| Some((text.find(sign)?, sign, comparison)));
        // The leftmost sign, and of those that begin at one place the longest.
        let (at, sign, comparison) =
            found.min_by_key(|(at, sign, _)| (*at, 2 - sign.len())).ok_or_else(|| {
                match text.trim().parse::<Figure>() {
                    Ok(figure) => format!("there is no comparison in it: write it as in {figure}<{}", figure.example()),
                    Err(_) => "there is no comparison in it: write it as in p99<5ms, rate>=100000, errors>0".to_owned(),
                }
            })?;
        let figure: Figure = text[..at].trim().parse()?;
        let value = figure
            .parse_value(text[at + sign.len()..].trim())
            .map_err(|error| format!("{error}: write it as in {figure}{sign}{}", figure.example()))?;
        Ok(Criterion { figure, comparison, value })
    }
}

impl FromStr for Figure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, figure)) = FIGURES.iter().find(|(name, _)| *name == text) {
            return Ok(*figure);
        }
        let percentile = text.strip_prefix('p').filter(|number| number.starts_with(|c: char| c.is_ascii_digit()));
        match percentile.and_then(|number| number.parse().ok()) {
            Some(percentile) if percentile > 0.0 && percentile <= 100.0 => Ok(Figure::Percentile(percentile)),
            _ => Err(format!(
                "{text:?} is no figure of a run (there are p50, p99.9 and the like, mean, max, rate, errors, \
                 mismatches, missed, lost and connections): write it as in p99<5ms, rate>=100000, errors>0"
            )),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figure::Percentile(percentile) => write!(f, "p{percentile}"),
            named => f.write_str(FIGURES.iter().find(|(_, figure)| figure == named).map_or("", |(name, _)| name)),
        }
    }
}

impl Figure {
    /// A value that it can be compared with.
    fn example(self) -> &'static str {
        match self {
            _ if self.is_time() => "5ms",
            Figure::Rate => "100k",
            _ => "0",
        }
    }

    fn is_time(self) -> bool {
        matches!(self, Figure::Percentile(_) | Figure::Mean | Figure::Max)
    }

    fn parse_value(self, text: &str) -> Result<f64, String> {
        if self.is_time() {
            let time = values::nanoseconds(text).map_err(|error| format!("{text:?} is not a time: {error}"))?;
            return Ok(time as f64 / 1000.0);
        }
        let number = if self == Figure::Rate { values::rate(text) } else { values::number(text) };
        match number {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(format!("{text:?} is not a number")),
        }
    }

    /// Its value; infinite if it is a time that is not known to have an end.
    fn of(self, figures: &Figures) -> f64 {
        let bounds = figures.response.bounds() > 0;
        match self {
            Figure::Percentile(percentile) => figures.response.highest(percentile).map_or(f64::INFINITY, micros),
            Figure::Mean | Figure::Max if bounds => f64::INFINITY,
            Figure::Mean => figures.response.mean() / 1000.0,
            Figure::Max => micros(figures.response.max()),
            Figure::Rate => figures.rate,
            Figure::Errors => figures.errors as f64,
            Figure::Mismatches => figures.mismatches as f64,
            Figure::Missed => figures.missed as f64,
            Figure::Lost => figures.lost as f64,
            Figure::Connections => figures.connections as f64,
        }
    }

    /// The lower limit, in microseconds, of a time whose upper end is unknown.
    fn at_least(self, figures: &Figures) -> f64 {
        match self {
            Figure::Percentile(percentile) => micros(figures.response.all().value_at_percentile(percentile)),
            Figure::Mean => figures.response.mean() / 1000.0,
            _ => micros(figures.response.max()),
        }
    }

    fn show(self, value: f64) -> String {
        if self.is_time() { show_micros(value) } else { value.to_string() }
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign =
            COMPARISONS.iter().find(|(_, comparison)| *comparison == self.comparison).map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}", self.figure)?;
        if self.figure.is_time() {
            let nanoseconds = (self.value * 1000.0).round();
            let time = Duration::new((nanoseconds / 1e9) as u64, (nanoseconds % 1e9) as u32);
            f.write_str(&humantime::format_duration(time).to_string().replace(' ', ""))
        } else if self.value >= 1e15 {
            write!(f, "{:e}", self.value) // so many digits are not read back
        } else {
            write!(f, "{}", self.value)
        }
    }
}

impl Criterion {
    /// Whether it holds, and the figure as it was. `None`: there is no data to tell it from.
    pub(super) fn judge(&self, figures: &Figures) -> (Option<bool>, String) {
        if self.figure.is_time() && figures.response.len() == 0 {
            return (None, "no message was due".to_owned());
        }
        let figure = self.figure.of(figures);
        let holds = match self.comparison {
            Comparison::Less => figure < self.value,
            Comparison::LessOrEqual => figure <= self.value,
            Comparison::More => figure > self.value,
            Comparison::MoreOrEqual => figure >= self.value,
        };
        let shown = if figure.is_finite() {
            self.figure.show(figure)
        } else {
            // Messages that were not answered meet no bound.
            show_at_least(self.figure.at_least(figures), true)
        };
        (Some(holds), format!("{} = {shown}", self.figure))
    }

    /// Whether it holds of a run, and the figure as it was. A criterion without data counts as holding:
    /// --fail-if names what must not be, so a run that cannot show otherwise fails.
    ///
    /// # Errors
    ///
    /// If the run's histogram is damaged.
    pub fn judge_run(&self, run: &Run) -> anyhow::Result<(bool, String)> {
        let (holds, figure) = self.judge(&Figures {
            response: &run.response.distribution()?,
            rate: run.rate,
            errors: run.error_count(),
            mismatches: run.mismatch_count(),
            missed: run.messages.missed,
            lost: run.messages.unanswered,
            connections: run.connections.opened,
        });
        Ok((holds.unwrap_or(true), figure))
    }

    /// What a step of a search shows: that it holds, or that it does not, with a confidence of 95 %, or neither (`None`).
    pub(super) fn show(&self, figures: &Figures) -> (Option<bool>, String) {
        let (holds, text) = self.judge(figures);
        let Figure::Percentile(percentile) = self.figure else { return (holds, text) };
        let (beyond, all) = (figures.response.count_beyond(self.nanoseconds()), figures.response.len());
        if percentile >= 100.0 || all == 0 {
            return (holds, text);
        }
        let (lowest, highest) = likely_share(beyond, all);
        let allowed = 1.0 - percentile / 100.0;
        let shown = match () {
            () if highest <= allowed => Some(true),
            () if lowest > allowed => Some(false),
            () => None,
        };
        (
            shown,
            if shown.is_some() {
                text
            } else {
                format!("{text}, which takes more than {} to show", counted(all, "message"))
            },
        )
    }

    /// Whether it is already certain that it does not hold, of `beyond` messages of `all` that took longer.
    pub(super) fn has_failed(&self, beyond: u64, all: u64) -> bool {
        let Figure::Percentile(percentile) = self.figure else { return false };
        let allowed = 1.0 - percentile / 100.0;
        percentile < 100.0 && likely_share(beyond, all).0 > (2.0 * allowed).min(allowed + 0.1 * (1.0 - allowed))
    }

    /// The percentile that it judges, 100 for the maximum, and the time in microseconds that it is held against.
    pub(super) fn time_limit(&self) -> Option<(f64, f64)> {
        match self.figure {
            Figure::Percentile(percentile) => Some((percentile, self.value)),
            Figure::Max => Some((100.0, self.value)),
            _ => None,
        }
    }

    /// The longest time that it allows, in nanoseconds.
    pub(super) fn nanoseconds(&self) -> u64 {
        (self.value * 1000.0) as u64
    }

    /// The number of messages without which its figure cannot be shown to hold, and the number from which it can be told
    /// well: for a percentile, so many that a hundred lie beyond.
    pub(super) fn messages_needed(&self) -> (u64, u64) {
        match self.figure {
            Figure::Percentile(p) if p < 100.0 => {
                let share = 1.0 - p / 100.0;
                ((CONFIDENCE * CONFIDENCE * (1.0 - share) / share).ceil() as u64 + 1, (100.0 / share).ceil() as u64)
            }
            _ => (1, 1000),
        }
    }

    /// Refuses what a search cannot look for: that it holds must become harder as the rate grows.
    pub(super) fn check_search(&self) -> Result<(), String> {
        let example = "look for the highest rate at which something is less, as in --find-rate 'p99<5ms'";
        match (self.figure, self.comparison) {
            (Figure::Rate | Figure::Connections, _) => {
                Err(format!("--find-rate {self}: a search does not find this by itself: {example}"))
            }
            (_, Comparison::More | Comparison::MoreOrEqual) => {
                Err(format!("--find-rate {self}: higher rates make this come true, and not the contrary: {example}"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what can never be over these connections.
    pub fn check(&self, datagrams: bool, open_loop: bool, connections: usize) -> Result<(), String> {
        match self.figure {
            Figure::Lost if !datagrams => {
                Err("only datagrams are lost (udp:HOST:PORT); a stream that fails is an error (errors>0)".to_owned())
            }
            Figure::Missed if !open_loop => {
                Err("only an open loop can miss messages, for in a closed loop none is due before its time (--rate)"
                    .to_owned())
            }
            _ if self.figure.is_time() && connections == 0 => Err("there are no messages to time with -c 0".to_owned()),
            Figure::Rate | Figure::Mismatches if connections == 0 => Err("there are no messages with -c 0".to_owned()),
            _ => Ok(()),
        }
    }
}

/// The quantile of the normal distribution beyond which 5 % lie.
const CONFIDENCE: f64 = 1.645;

/// What the share of which `count` of `all` are a sample may be, to both sides with a confidence of 95 % (E. B. Wilson,
/// "Probable inference, the law of succession, and statistical inference", 1927).
fn likely_share(count: u64, all: u64) -> (f64, f64) {
    let (n, z) = (all.max(1) as f64, CONFIDENCE);
    let share = count as f64 / n;
    let middle = share + z * z / (2.0 * n);
    let reach = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    ((middle - reach) / scale, (middle + reach) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<Criterion>().unwrap_err()
    }

    #[test]
    fn criteria_are_read_with_their_units() {
        let criterion: Criterion = "p99.9 <= 2ms".parse().unwrap();
        assert_eq!(criterion.figure, Figure::Percentile(99.9));
        assert_eq!((criterion.comparison, criterion.value), (Comparison::LessOrEqual, 2000.0));
        for text in ["p99<5ms", "p50>=250us", "rate<100000", "errors>0", "max>1s", "mean<1ms500us", "missed>0.5"] {
            assert_eq!(text.parse::<Criterion>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error("p99").contains("no comparison"));
        assert!(error("p101<1ms").contains("\"p101\""));
        assert!(error("p0<1ms").contains("\"p0\""));
        assert!(error("p-1<1ms").contains("\"p-1\""));
        assert!(error("speed>1").contains("\"speed\""));
        assert!(error("p99<5").contains("\"5\""));
        assert!(error("rate<fast").contains("\"fast\""));
        assert!(error("rate<-1").contains("\"-1\""));
        assert!(error("rate<inf").contains("\"inf\""));
        assert!(error("rate=5").contains("no comparison"));
        assert!(error("rate<>5").contains("\">5\""));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|(p[0-9.]{1,6}|max|rate|errors)[<>=]{1,2}[0-9.e-]{1,9}(ns|us|ms|s|h)?") {
            if let Ok(criterion) = text.parse::<Criterion>() {
                prop_assert_eq!(criterion.to_string().parse(), Ok(criterion));
            }
        }

        #[test]
        fn what_is_read_prints_back_to_the_same(
            figure in prop::sample::select(vec!["p50", "p99.99", "p100", "max", "rate", "errors", "connections"]),
            sign in prop::sample::select(vec!["<", "<=", ">", ">="]),
            value in 0u32..1_000_000_000,
        ) {
            let unit = if figure.starts_with('p') || figure == "max" { "us" } else { "" };
            let criterion: Criterion = format!("{figure}{sign}{value}{unit}").parse().unwrap();
            prop_assert_eq!(criterion.to_string().parse::<Criterion>().unwrap(), criterion);
        }
    }
}
