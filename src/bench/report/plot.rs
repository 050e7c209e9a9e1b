//! How a chart is drawn: as an SVG element that takes its colours from the page, in light and in dark.

use std::fmt::Write;
use std::ops::RangeInclusive;

use indicatif::HumanCount;

use crate::bench::latency::show_micros;
use crate::count::counted;

use super::text::count;

/// Room around the plot, in pixels: left, right, above, below.
const MARGINS: (f64, f64, f64, f64) = (70.0, 20.0, 12.0, 40.0);

/// What a character of a label takes, in pixels, in the widest of the usual fonts.
const CHARACTER: f64 = 8.5;

/// Lines with no more points than this have them marked.
const FEW: usize = 40;

/// Colours of runs, and dashes. `style.css` has them.
const COLOURS: usize = 8;

/// Axes that are longer than so many seconds have minutes, or hours.
pub(super) const MINUTES: f64 = 120.0;
const HOURS: f64 = 7200.0;

/// Strengths of a heat map's cells, and how many powers of ten of shares they tell apart.
const STRENGTHS: u8 = 7;
const HEAT_DECADES: f64 = 7.0;

/// A chart.
pub(super) struct Chart {
    pub title: String,
    /// What it shows, in a sentence or two.
    pub note: String,
    pub lines: Vec<Line>,
    pub bars: Vec<Bars>,
    pub heat: Option<Heat>,
    /// From where to where on the x axis there is nothing.
    pub shaded: Vec<(f64, f64)>,
    /// What is not to be exceeded, and what it is called.
    pub limits: Vec<(f64, String)>,
    /// How far the x axis goes at least.
    pub until: f64,
    pub x: Axis,
    pub y: Axis,
}

/// One line of a chart, in pieces between which there is nothing.
pub(super) struct Line {
    pub name: String,
    pub style: Style,
    pub pieces: Vec<Vec<(f64, f64)>>,
    pub marks: Vec<Mark>,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A run: a colour and a dash of its own.
    Run(usize),
    /// A run's service time: its colour, dotted.
    Service(usize),
    /// A figure of a run that is shown beside the one that matters: its colour and dash, thinner.
    Beside(usize),
    /// One of several figures of one run.
    Shade(usize),
}

/// Whether a criterion held at a point.
pub(super) struct Mark {
    pub at: (f64, f64),
    pub holds: bool,
}

/// Bars: from, to, how high.
pub(super) struct Bars {
    pub name: String,
    pub style: Style,
    pub bars: Vec<(f64, f64, f64)>,
}

/// A map of cells that are the stronger, the more is in them.
pub(super) struct Heat {
    pub columns: Vec<Column>,
}

/// A column of a map: from, to, and its cells: from, to, the share of what is in the column.
pub(super) type Column = (f64, f64, Vec<(f64, f64, f64)>);

impl Heat {
    /// What the page's script tells of each column.
    pub const VALUES: [&str; 3] = ["shortest", "most frequent", "longest"];

    /// What each strength stands for, the weakest first.
    pub fn legend(&self) -> Vec<(u8, String)> {
        let share = |strength: u8| 10f64.powf((f64::from(strength) / f64::from(STRENGTHS) - 1.0) * HEAT_DECADES);
        let text = |share: f64| format!("{} %", show_short(100.0 * share));
        let name = |strength: u8| match strength {
            0 => format!("less than {}", text(share(1))),
            last if last + 1 == STRENGTHS => format!("{} or more", text(share(last))),
            other => text(share(other)),
        };
        (0..STRENGTHS).map(|strength| (strength, name(strength))).collect()
    }

    /// How strong a cell with such a share of its column is: a step weaker for each power of ten, so that what is rare shows.
    fn strength(share: f64) -> usize {
        ((1.0 + share.log10() / HEAT_DECADES).clamp(0.0, 0.999) * f64::from(STRENGTHS)) as usize
    }

    /// The middle of the first, the fullest and the last cell of each column.
    fn values(&self) -> [Vec<[f64; 2]>; 3] {
        let mut values = [const { Vec::new() }; 3];
        for (from, to, cells) in &self.columns {
            let fullest = cells.iter().max_by(|left, right| left.2.total_cmp(&right.2));
            for (line, cell) in values.iter_mut().zip([cells.first(), fullest, cells.last()]) {
                line.extend(
                    cell.map(|(low, high, _)| [rounded(f64::midpoint(*from, *to)), rounded((low * high).sqrt())]),
                );
            }
        }
        values
    }
}

/// What an axis shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    Seconds,
    /// Messages per second, from 0.
    Rate,
    /// A number, from 0.
    Count,
    /// Percents, from 0.
    Share,
    /// Microseconds, logarithmic.
    Latency,
    /// -log10(1 - quantile): each whole number is one nine more.
    Nines,
}

impl Line {
    pub fn new(name: impl Into<String>, style: Style, pieces: Vec<Vec<(f64, f64)>>) -> Self {
        Line { name: name.into(), style, pieces, marks: Vec::new() }
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.pieces.iter().flatten()
    }
}

impl Style {
    /// The classes that `style.css` knows.
    pub fn classes(self) -> String {
        match self {
            Style::Run(number) => format!("c{0} d{0}", number % COLOURS),
            Style::Service(number) => format!("c{} service", number % COLOURS),
            Style::Beside(number) => format!("c{0} d{0} thin", number % COLOURS),
            Style::Shade(number) => format!("s{}", number % 4),
        }
    }
}

impl Axis {
    /// What it is called in the page's script.
    pub fn key(self) -> &'static str {
        match self {
            Axis::Seconds => "seconds",
            Axis::Rate => "rate",
            Axis::Count => "count",
            Axis::Share => "share",
            Axis::Latency => "latency",
            Axis::Nines => "nines",
        }
    }

    fn name(self, to: f64) -> &'static str {
        match self {
            Axis::Seconds if to > HOURS => "hours",
            Axis::Seconds if to > MINUTES => "minutes",
            Axis::Seconds => "seconds",
            Axis::Rate => "messages/s",
            Axis::Count => "errors",
            Axis::Share => "share",
            Axis::Latency => "latency",
            Axis::Nines => "percentile",
        }
    }

    pub fn label(self, value: f64) -> String {
        match self {
            Axis::Seconds => trim(value),
            Axis::Rate | Axis::Count if value >= 1e6 => format!("{} M", trim(value / 1e6)),
            Axis::Rate | Axis::Count if value >= 1e3 => format!("{} k", trim(value / 1e3)),
            Axis::Rate | Axis::Count => trim(value),
            Axis::Share => format!("{} %", trim(value)),
            Axis::Latency if value < 0.1 => format!("{} ns", trim(value * 1e3)),
            Axis::Latency => {
                let text = show_micros(value);
                let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
                let short =
                    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
                format!("{short} {unit}")
            }
            Axis::Nines => format!("{} %", trim(100.0 * (1.0 - 10f64.powf(-value)))),
        }
    }

    /// From where to where it goes, for what it has to show.
    fn range(self, values: impl Iterator<Item = f64>) -> RangeInclusive<f64> {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::MAX, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        match self {
            Axis::Latency => {
                let low = low.clamp(0.001, 1e15);
                let (low, high) = (round_log(low, false), round_log(high.clamp(low, 1e16), true));
                low..=if high > low { high } else { round_log(low * 1.5, true) }
            }
            Axis::Rate | Axis::Count | Axis::Share => {
                let high = if high > 0.0 { high.min(1e300) } else { 1.0 };
                let step = step(high / 5.0);
                0.0..=(high / step).ceil() * step
            }
            Axis::Seconds => 0.0..=high.clamp(1e-3, 1e12),
            Axis::Nines => 0.0..=high.max(1.0),
        }
    }

    /// Where its ticks are, at most about `most` of them.
    fn ticks(self, range: &RangeInclusive<f64>, most: usize) -> Vec<f64> {
        let (low, high) = (*range.start(), *range.end());
        match self {
            Axis::Latency => {
                let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
                let within = |value: &f64| (low * 0.999..=high * 1.001).contains(value);
                // 1-2-5, or whole decades, or not even all of those.
                for (digits, every) in [(&[1.0, 2.0, 5.0][..], 1), (&[1.0][..], 1), (&[1.0][..], 2), (&[1.0][..], 3)] {
                    let decades = (first..=last).filter(|decade| decade % every == 0);
                    let all = decades.flat_map(|decade| digits.iter().map(move |digit| digit * 10f64.powi(decade)));
                    let all: Vec<_> = all.filter(within).collect();
                    if all.len() <= most && all.len() >= 2 || every == 3 {
                        return all;
                    }
                }
                Vec::new()
            }
            Axis::Nines => [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
                .into_iter()
                .map(|quantile| -f64::log10(1.0 - quantile))
                .filter(|nines| *nines <= high + 0.01)
                .collect(),
            Axis::Seconds => {
                const STEPS: [f64; 20] = [
                    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
                    7200.0, 14_400.0, 43_200.0, 86_400.0,
                ];
                let coarse = step(high / most as f64);
                let step = match high {
                    // What is shorter than the first of them has fractions of a second.
                    ..0.2 => coarse,
                    _ => STEPS.into_iter().find(|step| high / step <= most as f64).unwrap_or(coarse),
                };
                (0..).map(|number| f64::from(number) * step).take_while(|at| *at <= high * 1.0001).collect()
            }
            Axis::Rate | Axis::Count | Axis::Share => {
                let step = step(high / most as f64);
                let step = if self == Axis::Count { step.max(1.0) } else { step };
                (0..).map(|number| f64::from(number) * step).take_while(|at| *at <= high * 1.0001).collect()
            }
        }
    }

    /// What stands at a tick of an axis that goes up to `to`.
    pub fn tick(self, value: f64, to: f64) -> String {
        match self {
            Axis::Seconds if to > HOURS => format!("{}:{:02}", (value / 3600.0) as u64, (value / 60.0) as u64 % 60),
            Axis::Seconds if to > MINUTES => format!("{}:{:02}", (value / 60.0) as u64, value as u64 % 60),
            _ => self.label(value),
        }
    }

    /// How far along the axis a value is, from 0 to 1.
    fn place(self, value: f64, range: &RangeInclusive<f64>) -> f64 {
        let (low, high) = (*range.start(), *range.end());
        let share = match self {
            Axis::Latency => (value.max(low).log10() - low.log10()) / (high.log10() - low.log10()),
            _ => (value - low) / (high - low),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// The next of 1, 2 and 5 times a power of ten, up or down.
fn round_log(value: f64, up: bool) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let mut steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter();
    if up {
        steps.find(|step| *step >= value * 0.9999).unwrap_or(10.0 * power)
    } else {
        steps.rfind(|step| *step <= value * 1.0001).unwrap_or(power)
    }
}

/// A number with as many decimals as it needs, four at most.
fn trim(number: f64) -> String {
    trim_to(number, 4)
}

fn trim_to(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A number with two digits that tell something.
fn show_short(number: f64) -> String {
    let digits = (1.0 - number.abs().max(1e-9).log10().floor()).max(0.0) as usize;
    trim_to(number, digits)
}

/// Points of a line that is drawn in so many pixels: where there are more than can be seen, the lowest and the highest
/// of each two pixels.
fn thin_out(points: &[(f64, f64)], room: usize, column: impl Fn(f64) -> usize) -> Vec<(f64, f64)> {
    if points.len() <= room {
        return points.to_vec();
    }
    points
        .chunk_by(|left, right| column(left.0) == column(right.0))
        .flat_map(|chunk| {
            let low = chunk.iter().copied().min_by(|left, right| left.1.total_cmp(&right.1));
            let high = chunk.iter().copied().max_by(|left, right| left.1.total_cmp(&right.1));
            let mut both: Vec<_> = low.into_iter().chain(high).collect();
            both.sort_by(|left, right| left.0.total_cmp(&right.0));
            both.dedup();
            both
        })
        .collect()
}

/// A text within SVG or an attribute.
fn escaped(text: &str) -> String {
    maud::html! { (text) }.into_string()
}

/// A chart's measures at one size.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: RangeInclusive<f64>,
    y: RangeInclusive<f64>,
}

impl Chart {
    /// One without anything in it.
    pub fn new(x: Axis, y: Axis) -> Self {
        Chart {
            title: String::new(),
            note: String::new(),
            lines: Vec::new(),
            bars: Vec::new(),
            heat: None,
            shaded: Vec::new(),
            limits: Vec::new(),
            until: 0.0,
            x,
            y,
        }
    }

    /// The names of what is in it, and how it looks, in the order of [`Chart::values`].
    pub fn legend(&self) -> impl Iterator<Item = (&str, Style)> {
        let lines = self.lines.iter().map(|line| (line.name.as_str(), line.style));
        lines.chain(self.bars.iter().map(|bars| (bars.name.as_str(), bars.style)))
    }

    /// Its values for the page's script: a list of points for each line.
    pub fn values(&self) -> String {
        let width = 440.0;
        let x = self.ranges().0;
        let column = |at: f64| (self.x.place(at, &x) * width) as usize;
        let lines = self.lines.iter().map(|line| {
            let pieces = line.pieces.iter().flat_map(|piece| thin_out(piece, width as usize, column));
            pieces.map(|(x, y)| [rounded(x), rounded(y)]).collect::<Vec<_>>()
        });
        let bars = self.bars.iter().map(|bars| {
            bars.bars.iter().map(|(from, to, high)| [rounded((from * to).sqrt()), rounded(*high)]).collect()
        });
        let heat = self.heat.iter().flat_map(Heat::values);
        serde_json::to_string(&lines.chain(bars).chain(heat).collect::<Vec<_>>()).unwrap_or_default()
    }

    /// The chart in words, for those who do not see it.
    pub fn describe(&self) -> String {
        let lines = self.lines.iter().map(|line| match (line.points().next(), line.points().last()) {
            (Some(first), Some(_)) if line.points().nth(1).is_none() => {
                format!("{} is {} at {}", line.name, in_words(self.y, first.1), in_words(self.x, first.0))
            }
            (Some(first), Some(last)) => {
                let most = line.points().max_by(|left, right| left.1.total_cmp(&right.1)).unwrap_or(first);
                format!(
                    "{} goes from {} at {} to {} at {}, and is at most {}, at {}",
                    line.name,
                    in_words(self.y, first.1),
                    in_words(self.x, first.0),
                    in_words(self.y, last.1),
                    in_words(self.x, last.0),
                    in_words(self.y, most.1),
                    in_words(self.x, most.0)
                )
            }
            _ => format!("{} has no points", line.name),
        });
        let bars = self.bars.iter().map(|bars| {
            let most = bars.bars.iter().max_by(|left, right| left.2.total_cmp(&right.2));
            most.map_or(String::new(), |(from, to, high)| {
                format!(
                    "{} goes from {} to {}; most, {}, are from {} to {}",
                    bars.name,
                    self.x.label(bars.bars.first().map_or(0.0, |bar| bar.0)),
                    self.x.label(bars.bars.last().map_or(0.0, |bar| bar.1)),
                    self.y.label((high * 100.0).round() / 100.0),
                    self.x.label(*from),
                    self.x.label(*to)
                )
            })
        });
        let heat = self.heat.iter().map(|heat| {
            let cells = || heat.columns.iter().flat_map(|(_, _, cells)| cells);
            let low = cells().map(|cell| cell.0).fold(f64::MAX, f64::min);
            let high = cells().map(|cell| cell.1).fold(0.0, f64::max);
            format!("It goes from {} to {}", self.y.label(low), self.y.label(high))
        });
        format!("{}. {}.", self.title, lines.chain(bars).chain(heat).collect::<Vec<_>>().join("; "))
    }

    fn ranges(&self) -> (RangeInclusive<f64>, RangeInclusive<f64>) {
        let points = || self.lines.iter().flat_map(Line::points);
        let bars = || self.bars.iter().flat_map(|bars| &bars.bars);
        let columns = || self.heat.iter().flat_map(|heat| &heat.columns);
        let x = points()
            .map(|point| point.0)
            .chain(bars().flat_map(|bar| [bar.0, bar.1]))
            .chain(columns().map(|column| column.1))
            .chain(self.shaded.iter().map(|gap| gap.1))
            .chain((self.until > 0.0).then_some(self.until));
        let y = points()
            .map(|point| point.1)
            .chain(bars().map(|bar| bar.2))
            .chain(columns().flat_map(|column| &column.2).flat_map(|cell| [cell.0, cell.1]))
            .chain(self.limits.iter().map(|limit| limit.0));
        (self.x.range(x), self.y.range(y))
    }

    fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.points().next().is_none())
            && self.bars.is_empty()
            && self.heat.as_ref().is_none_or(|heat| heat.columns.is_empty())
    }

    /// The chart as an SVG element of so many pixels.
    pub fn draw(&self, (width, height): (u32, u32)) -> anyhow::Result<String> {
        let (x, y) = self.ranges();
        let (left, right, top, bottom) = MARGINS;
        let (width, height) = (f64::from(width), f64::from(height));
        let frame = Frame { left, right: width - right, top, bottom: height - bottom, x, y };
        let mut out = String::new();
        write!(
            out,
            "<svg role=\"img\" viewBox=\"0 0 {width} {height}\" aria-label=\"{}\" data-from=\"{}\" data-to=\"{}\" \
             data-left=\"{}\" data-right=\"{}\">",
            escaped(&self.describe()),
            frame.x.start(),
            frame.x.end(),
            frame.left,
            frame.right
        )?;
        if self.is_empty() {
            write!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">nothing was measured</text></svg>",
                width / 2.0,
                height / 2.0
            )?;
            return Ok(out);
        }
        for &(from, to) in &self.shaded {
            let (from, to) = (self.at_x(from, &frame), self.at_x(to, &frame));
            let (wide, high) = ((to - from).max(1.0), frame.bottom - frame.top);
            write!(
                out,
                "<rect class=\"gap\" x=\"{from:.1}\" y=\"{}\" width=\"{wide:.1}\" height=\"{high}\"/>",
                frame.top
            )?;
        }
        self.draw_axes(&mut out, &frame)?;
        if let Some(heat) = &self.heat {
            self.draw_heat(&mut out, &frame, heat)?;
        }
        for bars in &self.bars {
            self.draw_bars(&mut out, &frame, bars)?;
        }
        for (limit, text) in &self.limits {
            let at = self.at_y(*limit, &frame);
            write!(
                out,
                "<line class=\"limit\" x1=\"{}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                frame.left, frame.right
            )?;
            write!(
                out,
                "<text class=\"limit\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                frame.right - 4.0,
                if at - frame.top > 18.0 { at - 5.0 } else { at + 15.0 },
                escaped(text)
            )?;
        }
        for line in &self.lines {
            self.draw_line(&mut out, &frame, line)?;
        }
        write!(out, "<line class=\"cursor\" y1=\"{}\" y2=\"{}\" hidden=\"\"/></svg>", frame.top, frame.bottom)?;
        Ok(out)
    }

    fn at_x(&self, value: f64, frame: &Frame) -> f64 {
        frame.left + self.x.place(value, &frame.x) * (frame.right - frame.left)
    }

    fn at_y(&self, value: f64, frame: &Frame) -> f64 {
        frame.bottom - self.y.place(value, &frame.y) * (frame.bottom - frame.top)
    }

    fn draw_axes(&self, out: &mut String, frame: &Frame) -> anyhow::Result<()> {
        let Frame { left, right, top, bottom, .. } = *frame;
        for tick in self.y.ticks(&frame.y, ((bottom - top) / 26.0) as usize) {
            let at = self.at_y(tick, frame);
            let label = escaped(&self.y.tick(tick, *frame.y.end()));
            write!(out, "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>")?;
            write!(out, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left - 7.0, at + 4.0)?;
        }
        let mut free = f64::MIN;
        for tick in self.x.ticks(&frame.x, ((right - left) / 70.0) as usize) {
            let at = self.at_x(tick, frame);
            let label = self.x.tick(tick, *frame.x.end());
            let half = label.len() as f64 * CHARACTER / 2.0;
            write!(
                out,
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\"/>",
                bottom + 4.0
            )?;
            // A label that would leave the picture is moved in; one that would touch another is left out.
            let middle = at.min(right + MARGINS.1 - half);
            if middle - half >= free {
                free = middle + half + 6.0;
                write!(
                    out,
                    "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    bottom + 17.0,
                    escaped(&label)
                )?;
            }
        }
        write!(out, "<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>")?;
        let (x, y) = ((left + right) / 2.0, bottom + 34.0);
        write!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", self.x.name(*frame.x.end()))?;
        let y = (top + bottom) / 2.0;
        write!(
            out,
            "<text transform=\"translate(12 {y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            self.y.name(*frame.y.end())
        )?;
        Ok(())
    }

    fn draw_heat(&self, out: &mut String, frame: &Frame, heat: &Heat) -> anyhow::Result<()> {
        let mut paths = vec![String::new(); usize::from(STRENGTHS)];
        for (from, to, cells) in &heat.columns {
            let (from, to) = (self.at_x(*from, frame), self.at_x(*to, frame));
            for (low, high, share) in cells {
                let (low, high) = (self.at_y(*low, frame), self.at_y(*high, frame));
                write!(paths[Heat::strength(*share)], "M{from:.1} {high:.1}H{to:.1}V{low:.1}H{from:.1}z")?;
            }
        }
        for (strength, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            write!(out, "<path class=\"heat h{strength}\" d=\"{path}\"/>")?;
        }
        Ok(())
    }

    fn draw_bars(&self, out: &mut String, frame: &Frame, bars: &Bars) -> anyhow::Result<()> {
        let classes = bars.style.classes();
        let several = self.bars.len() > 1;
        let mut outline = String::new();
        let mut last = None;
        for &(from, to, high) in &bars.bars {
            let (left, right) = (self.at_x(from, frame), self.at_x(to, frame));
            let top = self.at_y(high, frame).min(frame.bottom - 1.0);
            if several {
                let joined = last.is_some_and(|last: f64| (last - left).abs() < 0.5);
                let bottom = frame.bottom;
                if !joined {
                    write!(
                        outline,
                        "{}{left:.1},{bottom:.1} ",
                        last.map_or(String::new(), |last| format!("{last:.1},{bottom:.1} "))
                    )?;
                }
                write!(outline, "{left:.1},{top:.1} {right:.1},{top:.1} ")?;
                last = Some(right);
            } else {
                let (wide, high) = ((right - left - 1.0).max(1.0), frame.bottom - top);
                write!(
                    out,
                    "<rect class=\"bar {classes}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\"/>"
                )?;
            }
        }
        if let Some(last) = last {
            write!(out, "<polyline class=\"line {classes}\" points=\"{outline}{last:.1},{:.1}\"/>", frame.bottom)?;
        }
        Ok(())
    }

    fn draw_line(&self, out: &mut String, frame: &Frame, line: &Line) -> anyhow::Result<()> {
        let classes = line.style.classes();
        let few = line.points().count() <= FEW && self.x != Axis::Nines;
        let width = frame.right - frame.left;
        for piece in &line.pieces {
            let column = |at: f64| (self.x.place(at, &frame.x) * width / 2.0) as usize;
            let points = thin_out(piece, width as usize, column);
            let mut at: Vec<_> = points.iter().map(|(x, y)| (self.at_x(*x, frame), self.at_y(*y, frame))).collect();
            at.dedup();
            let dense = if points.len() < piece.len() { " dense" } else { "" };
            if at.len() > 1 {
                let mut text = String::new();
                for (x, y) in &at {
                    write!(text, "{x:.1},{y:.1} ")?;
                }
                write!(out, "<polyline class=\"line {classes}{dense}\" points=\"{}\"/>", text.trim_end())?;
            }
            // One point alone would make no line at all.
            if line.marks.is_empty() && (few || at.len() == 1) {
                for (x, y) in &at {
                    write!(out, "<circle class=\"dot {classes}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>")?;
                }
            }
        }
        for mark in &line.marks {
            let (x, y) = (self.at_x(mark.at.0, frame), self.at_y(mark.at.1, frame));
            if mark.holds {
                write!(out, "<circle class=\"dot {classes}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>")?;
            } else {
                write!(out, "<path class=\"cross\" d=\"M{:.1} {:.1}l10 10m0 -10l-10 10\"/>", x - 5.0, y - 5.0)?;
            }
        }
        Ok(())
    }
}

/// As many digits as a reader can use.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powf(4.0 - value.abs().log10().floor());
    if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value }
}

/// A number of a chart in words.
fn in_words(axis: Axis, value: f64) -> String {
    match axis {
        Axis::Seconds => counted(value.round() as u64, "second").to_string(),
        Axis::Rate => format!("{} messages/s", count(value)),
        Axis::Count => HumanCount(value as u64).to_string(),
        _ => axis.label(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis, low: f64, high: f64, most: usize) -> Vec<String> {
        let range = axis.range([low, high].into_iter());
        axis.ticks(&range, most).into_iter().map(|tick| axis.tick(tick, *range.end())).collect()
    }

    #[test]
    fn logarithmic_ticks_are_1_2_5() {
        assert_eq!(labels(Axis::Latency, 13.0, 90.0, 9), ["10 us", "20 us", "50 us", "100 us"]);
        assert_eq!(labels(Axis::Latency, 130.0, 140.0, 9), ["100 us", "200 us"]);
        assert_eq!(labels(Axis::Latency, 100.0, 100.0, 9), ["100 us", "200 us"]);
        let wide = labels(Axis::Latency, 1.0, 2e6, 9);
        assert_eq!(wide, ["1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s"]);
        assert_eq!(labels(Axis::Latency, 0.001, 9.0, 6), ["1 ns", "10 ns", "0.1 us", "1 us", "10 us"]);
        assert_eq!(labels(Axis::Latency, 1.0, 9e8, 6), ["1 us", "100 us", "10 ms", "1 s", "100 s"]);
    }

    #[test]
    fn percentile_ticks_are_at_the_nines() {
        assert_eq!(labels(Axis::Nines, 0.0, 4.0, 9), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn long_runs_have_minutes_and_hours() {
        assert_eq!(labels(Axis::Seconds, 0.0, 9.5, 5), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(Axis::Seconds, 0.0, 0.005, 5), ["0", "0.001", "0.002", "0.003", "0.004", "0.005"]);
        assert_eq!(labels(Axis::Seconds, 0.0, 290.0, 5), ["0:00", "1:00", "2:00", "3:00", "4:00"]);
        assert_eq!(labels(Axis::Seconds, 0.0, 14_000.0, 4), ["0:00", "1:00", "2:00", "3:00"]);
    }

    #[test]
    fn thinned_lines_keep_their_extremes() {
        let mut points: Vec<_> = (0..3600).map(|second| (f64::from(second), 10.0)).collect();
        (points[1234].1, points[2000].1) = (500.0, 0.0);
        let thin = thin_out(&points, 400, |at| (at / 9.0) as usize);
        assert!(thin.len() < 900 && thin.is_sorted_by(|left, right| left.0 < right.0));
        assert!(thin.contains(&points[1234]) && thin.contains(&points[2000]));
    }

    #[test]
    fn a_gap_breaks_the_line_and_is_shaded() {
        let pieces = vec![vec![(0.5, 10.0), (1.5, 20.0)], vec![(3.5, 10.0), (4.5, 10.0)]];
        let lines = vec![Line::new("p50", Style::Shade(0), pieces)];
        let chart = Chart { lines, shaded: vec![(2.0, 3.0)], ..Chart::new(Axis::Seconds, Axis::Latency) };
        let svg = chart.draw((880, 300)).unwrap();
        assert_eq!((svg.matches("<polyline").count(), svg.matches("class=\"gap\"").count()), (2, 1));
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let lines = vec![Line::new("\"><script>x</script>", Style::Run(0), vec![vec![(0.0, 1.0)]])];
        let chart = Chart { lines, limits: vec![(1.0, "<b>".to_owned())], ..Chart::new(Axis::Rate, Axis::Latency) };
        let svg = chart.draw((380, 300)).unwrap();
        assert!(!svg.contains("<script") && !svg.contains("<b>") && svg.contains("&lt;b&gt;"), "{svg}");
    }
}
