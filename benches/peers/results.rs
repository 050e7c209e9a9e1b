//! What came of the rounds: figures, their ratios to the first server's, and the tables that show them.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use serde::{Deserialize, Serialize};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const BEGIN: &str = "<!-- the table of `cargo bench --bench peers -- docs` begins -->\n";
const END: &str = "<!-- the table ends -->\n";

#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub echoloop: String,
    pub system: String,
    pub processors: usize,
    /// Server and load had a core each.
    pub pinned: bool,
    pub rounds: u64,
    /// How long a server was measured in a round.
    pub seconds: f64,
    pub scenarios: Vec<Scenario>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Scenario {
    pub name: String,
    pub about: String,
    /// It is the memory that counts, and not messages.
    pub memory: bool,
    /// The first is what the others are compared with.
    pub peers: Vec<Peer>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its figures in each round.
    Measured(Vec<Figures>),
    /// Why there are none.
    LeftOut(String),
}

/// What one round found of one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// Replies per second.
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Processor time of the server for each message, in microseconds; null if it is more than one process.
    pub cpu_us: Option<f64>,
    /// Resident memory of the server for each connection; null if it is more than one process.
    pub bytes_per_connection: Option<f64>,
    /// How often wrong bytes came back.
    pub mismatches: u64,
    /// What else went wrong: connections refused, reset, timed out.
    pub errors: u64,
}

/// A figure over all rounds.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = values.first().zip(values.last())?;
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Spread { median, least, most })
    }
}

impl Peer {
    fn rounds(&self) -> &[Figures] {
        match &self.outcome {
            Outcome::Measured(rounds) => rounds,
            Outcome::LeftOut(_) => &[],
        }
    }

    fn median(&self, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        Spread::of(self.rounds().iter().map(figure)).map(|spread| spread.median)
    }
}

impl Scenario {
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// A figure's ratio to the first server's, taken round by round.
    pub fn ratio(&self, peer: &Peer, figure: impl Fn(&Figures) -> f64) -> Option<Spread> {
        let first = self.peers.first()?.rounds();
        Spread::of(peer.rounds().iter().zip(first).map(|(this, first)| figure(this) / figure(first)))
    }

    /// All servers and figures of this scenario.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.memory {
            table.set_header(["", "B/connection", "ratio", "errors"]);
        } else {
            let mut header = vec!["", "messages/s", "ratio", "min-max", "p50 us", "p99 us", "ratio"];
            header.extend(["CPU us/message", "ratio", "min-max", "B/connection", "mismatches", "errors"]);
            table.set_header(header);
        }
        for peer in &self.peers {
            if let Outcome::LeftOut(reason) = &peer.outcome {
                table.add_row([peer.name.clone(), format!("({reason})")]);
                continue;
            }
            let sum = |figure: fn(&Figures) -> u64| peer.rounds().iter().map(figure).sum::<u64>().to_string();
            let ratio = |figure: fn(&Figures) -> f64| {
                let spread = self.ratio(peer, figure);
                let number = spread.map_or("-".to_owned(), |spread| format!("{:.3}", spread.median));
                (number, spread.map_or("-".to_owned(), |spread| format!("{:.2}-{:.2}", spread.least, spread.most)))
            };
            let bytes = show(peer.median(|figures| figures.bytes_per_connection.unwrap_or(f64::NAN)));
            if self.memory {
                let (share, _) = ratio(|figures| figures.bytes_per_connection.unwrap_or(f64::NAN));
                table.add_row([peer.name.clone(), bytes, share, sum(|figures| figures.errors)]);
                continue;
            }
            let ((rate, rates), (cpu, cpus)) =
                (ratio(|figures| figures.rate), ratio(|figures| figures.cpu_us.unwrap_or(f64::NAN)));
            let row = [
                peer.name.clone(),
                show(peer.median(|figures| figures.rate)),
                rate,
                rates,
                show(peer.median(|figures| figures.p50_us)),
                show(peer.median(|figures| figures.p99_us)),
                ratio(|figures| figures.p99_us).0,
                show(peer.median(|figures| figures.cpu_us.unwrap_or(f64::NAN))),
                cpu,
                cpus,
                bytes,
                sum(|figures| figures.mismatches),
                sum(|figures| figures.errors),
            ];
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("\n{}: {}\n{table}\n", self.name, self.about)
    }
}

/// A number with as many digits as tell something.
fn show(number: Option<f64>) -> String {
    match number {
        None => "-".to_owned(),
        Some(number) if number >= 100.0 => HumanCount(number as u64).to_string(),
        Some(number) if number >= 10.0 => format!("{number:.1}"),
        Some(number) => format!("{number:.2}"),
    }
}

impl Results {
    pub fn new(pinned: bool, rounds: u64, seconds: f64) -> Self {
        let system = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        Results {
            echoloop: env!("CARGO_PKG_VERSION").to_owned(),
            // The version that others have too, without what a distribution adds to it.
            system: format!(
                "{} {} {}",
                text(system.sysname()),
                text(system.release()).split('-').next().unwrap_or_default(),
                text(system.machine())
            ),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            pinned,
            rounds,
            seconds,
            scenarios: Vec::new(),
        }
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_reader(BufReader::new(file))
            .with_context(|| format!("{} is not what `cargo bench --bench peers` writes", path.display()))
    }

    pub fn mismatches(&self) -> u64 {
        let peers = self.scenarios.iter().flat_map(|scenario| &scenario.peers);
        peers.flat_map(Peer::rounds).map(|figures| figures.mismatches).sum()
    }

    /// The names of all servers that were measured anywhere, in the order in which they come.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for peer in self.scenarios.iter().flat_map(|scenario| &scenario.peers) {
            if !peer.rounds().is_empty() && !names.contains(&peer.name.as_str()) {
                names.push(&peer.name);
            }
        }
        // One that is for one scenario alone comes where that scenario has it.
        let order = |name: &&str| {
            let place = |scenario: &Scenario| scenario.peers.iter().position(|peer| peer.name == **name);
            self.scenarios.iter().filter_map(place).max()
        };
        names.sort_by_key(order);
        names
    }

    /// One table of the figures that matter most in each scenario, for a page.
    fn markdown(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        let column =
            |scenario: &Scenario| if scenario.memory { "B/idle connection".into() } else { scenario.name.clone() };
        table.set_header(std::iter::once(String::new()).chain(self.scenarios.iter().map(column)));
        for (number, name) in self.names().into_iter().enumerate() {
            let cell = |scenario: &Scenario| {
                let Some(peer) = scenario.peer(name) else { return String::new() };
                if scenario.memory {
                    return show(peer.median(|figures| figures.bytes_per_connection.unwrap_or(f64::NAN)));
                }
                if number == 0 {
                    return peer
                        .median(|figures| figures.rate)
                        .map_or("-".into(), |rate| format!("{}/s", HumanCount(rate as u64)));
                }
                scenario
                    .ratio(peer, |figures| figures.rate)
                    .map_or("-".into(), |spread| format!("{:.2}", spread.median))
            };
            table.add_row(std::iter::once(name.to_owned()).chain(self.scenarios.iter().map(cell)));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n\n");
        for scenario in &self.scenarios {
            text.push_str(&format!("- **{}**: {}\n", scenario.name, scenario.about));
        }
        text.push_str(&format!(
            "\necholoop {}, {}, {} processors{}; {} rounds of {} s.\n",
            self.echoloop,
            self.system,
            self.processors,
            if self.pinned { ", one for the server and one for the load" } else { "" },
            self.rounds,
            self.seconds
        ));
        text
    }

    /// Puts the table into docs/performance.md.
    pub fn write_table(&self) -> anyhow::Result<()> {
        let path = Path::new(ROOT).join("docs/performance.md");
        let page = fs::read_to_string(&path)?;
        let (before, rest) = page.split_once(BEGIN).context("docs/performance.md has no place for the table")?;
        let (_, after) = rest.split_once(END).context("docs/performance.md has no end of the table")?;
        Ok(fs::write(&path, format!("{before}{BEGIN}\n{}\n{END}{after}", self.markdown()))?)
    }
}
