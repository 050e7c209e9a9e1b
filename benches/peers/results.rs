//! What came of the rounds: figures, their ratios to the first server's, and the tables that show them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::measure::Measure;
use crate::targets::TARGETS;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub echoloop: String,
    pub system: String,
    pub processors: usize,
    /// Server and load had a core each.
    pub pinned: bool,
    pub scenarios: Vec<Scenario>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Scenario {
    pub name: String,
    pub about: String,
    pub rounds: u64,
    /// How long a server was measured in a round.
    pub seconds: f64,
    /// It is among those of which messages per second are the figure.
    pub plain: bool,
    /// What is looked at. The first is what it is about.
    pub measures: Vec<Measure>,
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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// What could not be looked at is not there.
    #[serde(flatten)]
    pub values: BTreeMap<Measure, f64>,
    /// How often wrong bytes came back.
    pub mismatches: u64,
    /// What else went wrong: connections refused, reset, timed out; datagrams lost.
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
    pub fn rounds(&self) -> &[Figures] {
        match &self.outcome {
            Outcome::Measured(rounds) => rounds,
            Outcome::LeftOut(_) => &[],
        }
    }

    pub fn spread(&self, measure: Measure) -> Option<Spread> {
        Spread::of(self.rounds().iter().filter_map(|figures| figures.values.get(&measure).copied()))
    }

    /// A figure's ratio to another's, taken round by round.
    pub fn ratio(&self, other: &Peer, measure: Measure) -> Option<Spread> {
        let pairs = self.rounds().iter().zip(other.rounds());
        let values = pairs.map(|(this, other)| (this.values.get(&measure), other.values.get(&measure)));
        Spread::of(values.filter_map(|(this, other)| Some(this? / other?)))
    }
}

impl Scenario {
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// A figure's ratio to the first server's.
    pub fn ratio(&self, peer: &Peer, measure: Measure) -> Option<Spread> {
        peer.ratio(self.peers.first()?, measure)
    }

    /// All servers and figures of this scenario.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let measures = self.measures.iter().flat_map(|measure| [measure.title(), "ratio (min-max)"]);
        table.set_header(std::iter::once("").chain(measures).chain(["mismatches", "errors"]));
        for peer in &self.peers {
            if let Outcome::LeftOut(reason) = &peer.outcome {
                table.add_row([peer.name.clone(), format!("({reason})")]);
                continue;
            }
            let mut row = vec![peer.name.clone()];
            for &measure in &self.measures {
                row.push(peer.spread(measure).map_or("-".to_owned(), |spread| measure.show(spread.median)));
                let ratio = self.ratio(peer, measure);
                row.push(ratio.map_or("-".to_owned(), |Spread { median, least, most }| {
                    format!("{median:.3} ({least:.2}-{most:.2})")
                }));
            }
            let sum = |figure: fn(&Figures) -> u64| peer.rounds().iter().map(figure).sum::<u64>().to_string();
            row.extend([sum(|figures| figures.mismatches), sum(|figures| figures.errors)]);
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("\n{}: {}\n{table}\n", self.name, self.about)
    }
}

impl Results {
    pub fn new(pinned: bool) -> Self {
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
            scenarios: Vec::new(),
        }
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_reader(BufReader::new(file))
            .with_context(|| format!("{} is not what `cargo bench --bench peers` writes", path.display()))
    }

    /// Whole or not at all, so that what was measured is there though it is killed meanwhile.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_string_pretty(self)?)
            .and_then(|()| fs::rename(&new, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn mismatches(&self) -> u64 {
        let peers = self.scenarios.iter().flat_map(|scenario| &scenario.peers);
        peers.flat_map(Peer::rounds).map(|figures| figures.mismatches).sum()
    }

    fn scenario(&self, name: &str) -> Option<&Scenario> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }

    /// The names of all servers that were measured in one of `scenarios`, in the order in which they come.
    fn names<'a>(scenarios: &[&'a Scenario]) -> Vec<&'a str> {
        let mut names: Vec<&str> = Vec::new();
        for peer in scenarios.iter().flat_map(|scenario| &scenario.peers) {
            if !peer.rounds().is_empty() && !names.contains(&peer.name.as_str()) {
                names.push(&peer.name);
            }
        }
        // One that is for one scenario alone comes where that scenario has it.
        let order = |name: &&str| {
            let place = |scenario: &&Scenario| scenario.peers.iter().position(|peer| peer.name == **name);
            scenarios.iter().filter_map(place).max()
        };
        names.sort_by_key(order);
        names
    }

    /// A table of some figures, for a page: the first server's in their units, and the others' against them.
    fn figures(columns: &[(&Scenario, Measure)]) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        let header = columns.iter().map(|(scenario, measure)| match (scenario.plain, measure) {
            (true, Measure::Memory) => "B/idle connection".to_owned(),
            (true, _) => scenario.name.clone(),
            (false, _) => format!("{}: {}", scenario.name, measure.title()),
        });
        table.set_header(std::iter::once(String::new()).chain(header));
        let scenarios: Vec<&Scenario> = columns.iter().map(|(scenario, _)| *scenario).collect();
        for (number, name) in Self::names(&scenarios).into_iter().enumerate() {
            let cell = |&(scenario, measure): &(&Scenario, Measure)| {
                let Some(peer) = scenario.peer(name) else { return String::new() };
                let spread = if number == 0 || measure.is_absolute() {
                    peer.spread(measure).map(|spread| measure.show(spread.median))
                } else {
                    scenario.ratio(peer, measure).map(|spread| format!("{:.2}", spread.median))
                };
                spread.unwrap_or("-".to_owned())
            };
            table.add_row(std::iter::once(name.to_owned()).chain(columns.iter().map(cell)));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n\n");
        let mut told = None;
        for scenario in &scenarios {
            if told != Some(&scenario.name) {
                text.push_str(&format!("- **{}**: {}\n", scenario.name, scenario.about));
                told = Some(&scenario.name);
            }
        }
        text + &Self::absent(&scenarios)
    }

    /// Who has no figures somewhere, and why; and whose figures have errors in them.
    fn absent(scenarios: &[&Scenario]) -> String {
        let mut reasons: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut errors = BTreeSet::new();
        for scenario in scenarios {
            for peer in &scenario.peers {
                if let Outcome::LeftOut(reason) = &peer.outcome {
                    reasons.entry(reason).or_default().insert(&peer.name);
                }
                let count: u64 = peer.rounds().iter().map(|figures| figures.errors).sum();
                if count > 0 {
                    errors.insert(format!("{} in {}: {}", peer.name, scenario.name, indicatif::HumanCount(count)));
                }
            }
        }
        let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
        let mut text: String =
            reasons.into_iter().map(|(reason, names)| format!("- no figure, {reason}: {}\n", list(names))).collect();
        if !errors.is_empty() {
            text.push_str(&format!("- errors: {}\n", errors.into_iter().collect::<Vec<_>>().join("; ")));
        }
        text
    }

    /// Scenarios whose figure is messages per second, or the memory of what is idle.
    fn plain(&self) -> String {
        let plain = self.scenarios.iter().filter(|scenario| scenario.plain);
        let columns: Vec<_> = plain.filter_map(|scenario| Some((scenario, *scenario.measures.first()?))).collect();
        let pinned = if self.pinned { ", one for the server and one for the load" } else { "" };
        let mut rounds: Vec<_> = self.scenarios.iter().map(|it| format!("{} of {} s", it.rounds, it.seconds)).collect();
        rounds.dedup();
        format!(
            "{}\necholoop {}, {}, {} processors{pinned}; rounds: {}.\n",
            Self::figures(&columns),
            self.echoloop,
            self.system,
            self.processors,
            rounds.join(", then "),
        )
    }

    /// The others.
    fn users(&self) -> String {
        let others = self.scenarios.iter().filter(|scenario| !scenario.plain);
        let shown = |scenario: &Scenario, measure: &Measure| match measure {
            Measure::P50 | Measure::Cpu => scenario.measures.first() == Some(measure),
            Measure::Rate | Measure::P99 | Measure::Memory => {
                scenario.measures.first() == Some(measure) || ["unreading", "sleepers"].contains(&&*scenario.name)
            }
            _ => true,
        };
        let columns = others.flat_map(|scenario| {
            scenario.measures.iter().filter(move |measure| shown(scenario, measure)).map(move |&it| (scenario, it))
        });
        Self::figures(&columns.collect::<Vec<_>>())
    }

    /// What is aimed at, and how far it is.
    fn targets(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["", "against", "aim", "ratio", "min-max", ""]);
        for target in TARGETS {
            let Some(scenario) = self.scenario(target.scenario) else { continue };
            let ours = scenario.peer("echoloop");
            let spread = match (ours, target.against) {
                (Some(ours), Some(name)) => scenario.peer(name).and_then(|other| ours.ratio(other, target.measure)),
                (Some(ours), None) => ours.spread(target.measure),
                (None, _) => None,
            };
            let show = |number: f64| match target.against {
                Some(_) => format!("{number:.2}"),
                None => target.measure.show(number),
            };
            let (ratio, range, verdict) = match spread {
                None => ("-".to_owned(), "-".to_owned(), "not measured"),
                Some(Spread { median, least, most }) => {
                    (show(median), format!("{}-{}", show(least), show(most)), target.verdict(median, least, most))
                }
            };
            let sign = if target.measure.more_is_better() { "at least" } else { "at most" };
            table.add_row([
                format!("{}: {}", target.scenario, target.measure.title()),
                target.against.unwrap_or("nothing").to_owned(),
                format!("{sign} {}", show(target.bound)),
                ratio,
                range,
                verdict.to_owned(),
            ]);
        }
        format!("{table}\n")
    }

    /// Puts the tables into docs/performance.md.
    pub fn write_tables(&self) -> anyhow::Result<()> {
        let path = Path::new(ROOT).join("docs/performance.md");
        let mut page = fs::read_to_string(&path)?;
        for (what, table) in [("peers", self.plain()), ("users", self.users()), ("targets", self.targets())] {
            let begin = format!("<!-- the table of `cargo bench --bench peers -- docs` begins: {what} -->\n");
            let end = "<!-- the table ends -->\n";
            let place = || format!("docs/performance.md has no place for the table of {what}");
            let (before, rest) = page.split_once(&begin).with_context(place)?;
            let (_, after) = rest.split_once(end).with_context(place)?;
            page = format!("{before}{begin}\n{table}\n{end}{after}");
        }
        Ok(fs::write(&path, page)?)
    }
}
