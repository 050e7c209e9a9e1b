//! The charts of the page: which lines each of them has, and how they are drawn.

use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontTransform;

use super::text::count;
use crate::bench::Run;
use crate::bench::latency::{Latency, micros, show_micros};

/// The lines' colours, in the order of the legend; they are told apart on light and on dark, and by most who see
/// colours differently. `style.css` has them too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x2f, 0x7e, 0xd8),
    RGBColor(0xe0, 0x7b, 0x1a),
    RGBColor(0x2a, 0x9d, 0x6e),
    RGBColor(0xc2, 0x48, 0x9b),
    RGBColor(0x8a, 0x6f, 0xd1),
    RGBColor(0x8c, 0x8a, 0x80),
];

const GREY: RGBColor = RGBColor(0x88, 0x88, 0x88);

/// The farthest to the right that a distribution goes: 99.9999 %.
const MOST_NINES: f64 = 6.0;

/// A figure of a set of latencies, and its name.
type Percentile = (&'static str, fn(&Latency) -> f64);

/// A chart.
pub(super) struct Chart {
    pub title: String,
    /// What it shows, in a sentence.
    pub note: String,
    pub lines: Vec<Line>,
    x: Axis,
    y: Axis,
}

/// One line of a chart.
pub(super) struct Line {
    pub name: String,
    points: Vec<(f64, f64)>,
}

/// What an axis shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    Seconds,
    /// Messages per second, from 0.
    Rate,
    /// Microseconds, logarithmic.
    Latency,
    /// -log10(1 - quantile): each whole number is one nine more.
    Nines,
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Axis::Seconds => "seconds",
            Axis::Rate => "messages/s",
            Axis::Latency => "latency",
            Axis::Nines => "percentile",
        }
    }

    fn label(self, value: f64) -> String {
        match self {
            Axis::Seconds => trim(value),
            Axis::Rate if value >= 1e6 => format!("{} M", trim(value / 1e6)),
            Axis::Rate if value >= 1e3 => format!("{} k", trim(value / 1e3)),
            Axis::Rate => count(value),
            Axis::Latency => show_micros(value).replace(".00 ", " ").replace(".0 ", " "),
            Axis::Nines => format!("{} %", trim(100.0 * (1.0 - 10f64.powf(-value)))),
        }
    }

    fn in_words(self, value: f64) -> String {
        match self {
            Axis::Seconds => format!("{} seconds", self.label(value)),
            Axis::Rate => format!("{} messages/s", count(value)),
            Axis::Latency | Axis::Nines => self.label(value),
        }
    }

    /// From where to where it goes, for what it has to show.
    fn range(self, values: impl Iterator<Item = f64>) -> Range<f64> {
        let (low, high) = values.fold((f64::MAX, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        match self {
            Axis::Latency => {
                let (low, high) = (low.max(1.0), high.max(2.0));
                low / 1.2..high * 1.2
            }
            Axis::Rate => 0.0..high.max(1.0) * 1.1,
            Axis::Seconds | Axis::Nines => 0.0..high.max(1.0),
        }
    }
}

/// A number with as many decimals as it needs, four at most.
fn trim(number: f64) -> String {
    let text = format!("{number:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// How many replies came in each second.
pub(super) fn throughput(runs: &[Run]) -> Chart {
    let line = |run: &Run| Line {
        name: run.name.clone(),
        points: timeline(run, |interval| interval.replies as f64 / interval.seconds.max(1e-9)),
    };
    Chart {
        title: "Throughput over time".to_owned(),
        note: "Replies per second, in intervals of a second. A dip is a pause, in the server or in the load."
            .to_owned(),
        lines: runs.iter().map(line).collect(),
        x: Axis::Seconds,
        y: Axis::Rate,
    }
}

/// The response time's percentiles of each second.
pub(super) fn latency_over_time(runs: &[Run]) -> Chart {
    const SHOWN: [Percentile; 4] = [
        ("p50", |latency| latency.p50_us),
        ("p90", |latency| latency.p90_us),
        ("p99", |latency| latency.p99_us),
        ("max", |latency| latency.max_us),
    ];
    let line = |run: &Run, name: String, figure: fn(&Latency) -> f64| Line {
        name,
        points: timeline(run, |interval| figure(&interval.response))
            .into_iter()
            .filter(|(_, time)| *time > 0.0)
            .collect(),
    };
    let (note, lines) = match runs {
        [run] => (
            "Percentiles of the response times of each second.",
            SHOWN.iter().map(|(name, figure)| line(run, (*name).to_owned(), *figure)).collect(),
        ),
        runs => (
            "The 99th percentile of the response times of each second.",
            runs.iter().map(|run| line(run, run.name.clone(), SHOWN[2].1)).collect(),
        ),
    };
    Chart { title: "Latency over time".to_owned(), note: note.to_owned(), lines, x: Axis::Seconds, y: Axis::Latency }
}

/// The distribution of latencies, on HdrHistogram's axis.
pub(super) fn distribution(runs: &[Run]) -> anyhow::Result<Chart> {
    let mut lines = Vec::new();
    for run in runs {
        let name = |what: &str| if runs.len() == 1 { what.to_owned() } else { format!("{}: {what}", run.name) };
        match &run.service {
            Some(service) => {
                lines.push(Line { name: name("response time"), points: quantiles(&run.response)? });
                lines.push(Line { name: name("service time"), points: quantiles(service)? });
            }
            None => lines.push(Line { name: name("round trip"), points: quantiles(&run.response)? }),
        }
    }
    Ok(Chart {
        title: "Latency by percentile".to_owned(),
        note:
            "So many of the replies came within so long. To the right each step is one nine more: the slowest tenth, \
               hundredth, thousandth."
                .to_owned(),
        lines,
        x: Axis::Nines,
        y: Axis::Latency,
    })
}

/// The response time at each rate that was tried, if one was looked for.
pub(super) fn latency_against_rate(runs: &[Run]) -> Option<Chart> {
    let mut lines = Vec::new();
    for run in runs {
        let Some(search) = &run.search else { continue };
        let name = |what: &str| if runs.len() == 1 { what.to_owned() } else { format!("{}: {what}", run.name) };
        let shown: [Percentile; 2] = [("p50", |latency| latency.p50_us), ("p99", |latency| latency.p99_us)];
        for (what, figure) in shown {
            // A rate that was tried twice is shown as it was the second time.
            let mut points: Vec<(f64, f64)> = Vec::new();
            for step in search.steps.iter().filter(|step| step.response.count > 0) {
                points.retain(|(rate, _)| *rate != step.rate);
                points.push((step.rate, figure(&step.response)));
            }
            points.sort_by(|(left, _), (right, _)| left.total_cmp(right));
            lines.push(Line { name: name(what), points });
        }
    }
    (!lines.is_empty()).then(|| Chart {
        title: "Latency against rate".to_owned(),
        note: "The response time at each rate that was tried. Where it turns up, the server is at its limit."
            .to_owned(),
        lines,
        x: Axis::Rate,
        y: Axis::Latency,
    })
}

fn timeline(run: &Run, figure: impl Fn(&crate::bench::Interval) -> f64) -> Vec<(f64, f64)> {
    // A last piece of less than a tenth of a second says nothing about a rate.
    let whole = run.timeline.iter().filter(|interval| interval.seconds >= 0.1 || run.timeline.len() == 1);
    whole.map(|interval| (interval.at + interval.seconds / 2.0, figure(interval))).collect()
}

fn quantiles(latency: &Latency) -> anyhow::Result<Vec<(f64, f64)>> {
    let histogram = latency.decode()?;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in histogram.iter_quantiles(10) {
        let nines = -(1.0 - step.quantile_iterated_to()).max(10f64.powf(-MOST_NINES)).log10();
        // The last of them is 100 %, which is nowhere on this axis: it is drawn where the count ends it.
        let last = (histogram.len() as f64).log10().min(MOST_NINES);
        points.push((nines.min(last), micros(step.value_iterated_to().min(histogram.max()))));
    }
    Ok(points)
}

impl Chart {
    /// The chart as an SVG element of so many pixels, without a background.
    pub fn draw(&self, size: (u32, u32)) -> anyhow::Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            self.draw_on(&area, size).map_err(|error| anyhow!("cannot draw {:?}: {error}", self.title))?;
            area.present().map_err(|error| anyhow!("cannot draw {:?}: {error}", self.title))?;
        }
        let label = maud::html! { svg role="img" aria-label=(self.describe()) { "" } }.into_string();
        let opening = label.trim_end_matches("></svg>");
        Ok(svg.replacen("<svg", opening, 1))
    }

    /// The chart in words, for those who do not see it.
    fn describe(&self) -> String {
        let lines = self.lines.iter().map(|line| match (line.points.first(), line.points.last()) {
            (Some(first), Some(last)) => format!(
                "{} goes from {} at {} to {} at {}",
                line.name,
                self.y.in_words(first.1),
                self.x.in_words(first.0),
                self.y.in_words(last.1),
                self.x.in_words(last.0)
            ),
            _ => format!("{} has no points", line.name),
        });
        format!("{}. {}.", self.title, lines.collect::<Vec<_>>().join("; "))
    }

    fn draw_on(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        size: (u32, u32),
    ) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        if points().next().is_none() {
            let style = ("sans-serif", 15).into_font().color(&GREY);
            area.draw_text("nothing was measured", &style, (size.0 as i32 / 2 - 70, size.1 as i32 / 2))?;
            return Ok(());
        }
        let x = self.x.range(points().map(|point| point.0));
        let y = self.y.range(points().map(|point| point.1));
        let mut builder = ChartBuilder::on(area);
        builder.margin(6).margin_right(18).x_label_area_size(40).y_label_area_size(64);
        match self.y {
            Axis::Latency => self.plot(&mut builder.build_cartesian_2d(x, y.log_scale())?, size),
            _ => self.plot(&mut builder.build_cartesian_2d(x, y)?, size),
        }
    }

    fn plot<Y>(
        &self,
        chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>,
        size: (u32, u32),
    ) -> Result<(), Box<dyn std::error::Error + '_>>
    where
        Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        let text = || ("sans-serif", 13).into_font().transform(FontTransform::None).color(&GREY);
        let labels = if size.0 > 500 { 9 } else { 4 };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .axis_style(GREY)
            .x_labels(if self.x == Axis::Nines { 7 } else { labels })
            .y_labels(if self.y == Axis::Latency { 12 } else { 6 })
            .label_style(text())
            .axis_desc_style(text())
            .x_desc(self.x.name())
            .y_desc(self.y.name())
            .x_label_formatter(&|value| self.x.label(*value))
            .y_label_formatter(&|value| self.y.label(*value))
            .draw()?;
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
            // Few points are shown as such; one alone would make no line at all.
            if line.points.len() <= 40 && self.x != Axis::Nines {
                chart.draw_series(line.points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
            }
        }
        Ok(())
    }
}
