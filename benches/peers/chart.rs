//! The picture: for each scenario a bar for each server, as long as what the scenario is about is against the first's.

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::results::{Results, Scenario};

const COLUMNS: usize = 2;
const PANEL_WIDTH: u32 = 460;
const BAR: i32 = 18;
const TITLE: i32 = 34;
const LABELS: i32 = 210;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const OURS: RGBColor = RGBColor(0x2f, 0x7e, 0xd8);
const THEIRS: RGBColor = RGBColor(0xb8, 0xb6, 0xac);

/// The longest bar, for one that is far behind would make all others as short.
const MOST: f64 = 4.0;

/// Draws all scenarios in which ratios tell something, as SVG.
pub fn draw(results: &Results) -> anyhow::Result<String> {
    let scenarios: Vec<_> =
        results.scenarios.iter().filter(|scenario| scenario.name != "memory" && scenario.name != "soak").collect();
    let bars = |scenario: &Scenario| bars(scenario).len() as i32;
    let rows: Vec<_> = scenarios.chunks(COLUMNS).collect();
    let heights: Vec<_> = rows
        .iter()
        .map(|row| TITLE + BAR * row.iter().map(|scenario| bars(scenario)).max().unwrap_or(0) + 12)
        .collect();
    let size = (PANEL_WIDTH * COLUMNS as u32 + 20, heights.iter().sum::<i32>() as u32 + 30);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        let text = |text: &str, at: (i32, i32), size: i32, anchor: HPos| {
            let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(anchor, VPos::Center));
            root.draw(&Text::new(text.to_owned(), at, style)).map_err(|error| anyhow!("{error}"))
        };
        let first = scenarios.first().and_then(|scenario| scenario.peers.first());
        let caption =
            format!("against {}; longer is better, unless it says otherwise", first.map_or("", |peer| &peer.name));
        text(&caption, (12, 16), 13, HPos::Left)?;
        let mut top = 30;
        for (row, height) in rows.iter().zip(heights) {
            for (column, scenario) in row.iter().enumerate() {
                let left = 12 + PANEL_WIDTH as i32 * column as i32;
                let measure = scenario.measures.first().map_or("", |measure| measure.title());
                let better = match scenario.measures.first() {
                    Some(measure) if measure.more_is_better() => "",
                    _ => ": shorter is better",
                };
                text(&format!("{}, {measure}{better}", scenario.name), (left, top + 16), 15, HPos::Left)?;
                let bars = self::bars(scenario);
                let longest = bars.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max).min(MOST);
                let room = f64::from(PANEL_WIDTH as i32 - LABELS - 60);
                for (number, (name, ratio)) in bars.iter().enumerate() {
                    let y = top + TITLE + BAR * number as i32;
                    let from = left + LABELS;
                    let to = from + (room * ratio.min(longest) / longest).round().max(1.0) as i32;
                    let colour = if name.starts_with("echoloop") { OURS } else { THEIRS };
                    text(name, (from - 6, y + BAR / 2), 12, HPos::Right)?;
                    root.draw(&Rectangle::new([(from, y + 2), (to, y + BAR - 3)], colour.filled()))
                        .map_err(|error| anyhow!("{error}"))?;
                    text(&format!("{ratio:.2}"), (to + 5, y + BAR / 2), 12, HPos::Left)?;
                }
            }
            top += height;
        }
        root.present().map_err(|error| anyhow!("{error}"))?;
    }
    Ok(svg)
}

/// The servers that have a ratio, and which.
fn bars(scenario: &Scenario) -> Vec<(&str, f64)> {
    let ratio = |peer| scenario.ratio(peer, *scenario.measures.first()?).map(|spread| spread.median);
    scenario.peers.iter().filter_map(|peer| Some((peer.name.as_str(), ratio(peer)?))).collect()
}
