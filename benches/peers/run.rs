//! The rounds: servers are started, loaded and looked at.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use echoloop::bench::Run;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::chart;
use crate::load::{self, Burst};
use crate::measure::Measure;
use crate::results::{Figures, Outcome, Peer as PeerResult, Results, Scenario as ScenarioResult};
use crate::scenarios::{Load, SCENARIOS, Scenario};
use crate::servers::{self, ECHOLOOP, Group, Peer, Priority, Server, Start, pinned};

/// Compares echoloop with other echo servers on this machine. Takes some minutes.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,

    /// Rounds; each server has its turn in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,

    /// How long a server is measured in a round, in seconds; below 1, there are fewer connections where there are many
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Only scenarios whose name contains this; may be given several times
    #[arg(long)]
    scenario: Vec<String>,

    /// Only servers whose name contains this, and the first; may be given several times
    #[arg(long)]
    peer: Vec<String>,

    /// Another build of echoloop to compare, as NAME=PROGRAM, or NAME=PROGRAM:FLAGS for `serve`
    #[arg(long, value_name = "NAME=PROGRAM")]
    also: Vec<String>,

    /// Write all figures to FILE, after each scenario
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/peers.json"))]
    json: PathBuf,

    /// Keep what that file has already, and measure only scenarios that it has not
    #[arg(long)]
    resume: bool,

    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Write the tables and the picture of docs/performance.md from the figures in FILE
    Docs { file: PathBuf },
    /// Be one of the servers
    #[command(hide = true)]
    Serve { name: String, address: String },
    /// Be one of the loads
    #[command(hide = true)]
    Burst { server: std::net::SocketAddr, count: usize },
    /// Be one of the loads
    #[command(hide = true)]
    Unreading { server: std::net::SocketAddr, count: usize },
    /// Run a program on one core
    #[command(hide = true)]
    Pin {
        core: usize,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

pub fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        None => compare(&cli),
        Some(Action::Docs { file }) => {
            let results = Results::read(file)?;
            results.write_tables()?;
            Ok(fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/peers.svg"), chart::draw(&results)?)?)
        }
        Some(Action::Serve { name, address }) => servers::serve(name, address),
        Some(Action::Burst { server, count }) => load::burst(*server, *count),
        Some(Action::Unreading { server, count }) => load::unreading(*server, *count),
        Some(Action::Pin { core, command }) => servers::pin(*core, command),
    }
}

/// How a server is measured.
#[derive(Clone, Copy)]
struct Plan {
    seconds: f64,
    /// A core for the server, and one for the load.
    cores: Option<(usize, usize)>,
    /// Messages per second, where that is not known beforehand.
    pace: f64,
}

impl Plan {
    fn server_core(&self) -> Option<usize> {
        self.cores.map(|(server, _)| server)
    }

    fn load_core(&self) -> Option<usize> {
        self.cores.map(|(_, load)| load)
    }

    /// How long there is load before what is measured: as long as it takes to open all connections does not count.
    fn warm_up(&self) -> Duration {
        Duration::from_secs_f64((self.seconds * 0.5).min(0.3))
    }

    /// `echoloop bench` against `server`.
    fn bench(&self, server: &Server, peer: &Peer, priority: Priority, flags: &[String]) -> anyhow::Result<Command> {
        let mut args: Vec<String> = ["bench", &server.address, "-q", "--json", "-"].map(str::to_owned).into();
        args.extend(["--watch-pid".to_owned(), server.pid().to_string()]);
        args.extend(peer.load.iter().map(|&flag| flag.to_owned()));
        args.extend(flags.iter().cloned());
        let mut command = pinned(self.load_core(), priority, ECHOLOOP, &args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    /// The same, for as long as is measured.
    fn timed(&self, server: &Server, peer: &Peer, priority: Priority, flags: &[String]) -> anyhow::Result<Command> {
        let times = ["--warm-up".to_owned(), millis(self.warm_up())];
        let duration = ["--duration".to_owned(), millis(Duration::from_secs_f64(self.seconds))];
        self.bench(server, peer, priority, &[&times, &duration, flags].concat())
    }

    /// This program as a load.
    fn own(&self, load: &str, server: &Server, priority: Priority, count: usize) -> anyhow::Result<Command> {
        let args = [load.to_owned(), server.address.clone(), count.to_string()];
        let mut command = pinned(self.load_core(), priority, &std::env::current_exe()?.display().to_string(), &args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(command)
    }
}

fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis().max(1))
}

/// Flags, with `number` where they say N.
fn flags(flags: &[&str], number: usize) -> Vec<String> {
    flags.iter().map(|&flag| if flag == "N" { number.to_string() } else { flag.to_owned() }).collect()
}

/// What a run of `echoloop bench` found.
fn read_run(output: std::process::Output) -> anyhow::Result<Run> {
    let errors = String::from_utf8_lossy(&output.stderr);
    // The report is on standard error here; only a line that begins so is an error.
    let error = errors.lines().find(|line| line.starts_with("echoloop: ") || line.starts_with("error: "));
    let run = String::from_utf8(output.stdout)?;
    Run::parse(&run).with_context(|| error.unwrap_or("the load failed").to_owned())
}

fn figures(run: &Run, peer: &Peer) -> anyhow::Result<Figures> {
    let watched = run.watched.as_ref().context("the server's process could not be watched")?;
    let response = &run.response;
    let mut values = [
        (Measure::Rate, run.rate),
        (Measure::P50, response.p50_us),
        (Measure::P99, response.p99_us),
        (Measure::P999, response.p99_9_us),
    ]
    .to_vec();
    if peer.is_one_process() {
        values.push((Measure::Cpu, watched.cpu_us_per_message));
        values.push((Measure::Memory, watched.resident_per_connection));
    }
    let mismatches = run.mismatch_count();
    Ok(Figures {
        values: values.into_iter().filter(|(_, value)| value.is_finite()).collect(),
        mismatches,
        errors: run.error_count() - mismatches + run.datagrams.map_or(0, |datagrams| datagrams.lost),
    })
}

/// One server, one scenario, one round.
fn measure(peer: &Peer, scenario: &Scenario, plan: Plan) -> anyhow::Result<Figures> {
    let server = Server::start(peer, scenario.kind, plan.server_core())?;
    let number = scenario.scaled(plan.seconds);
    let run = |words: &[&str]| read_run(plan.timed(&server, peer, Priority::Usual, &flags(words, number))?.output()?);
    match scenario.load {
        Load::Bench(words) => figures(&run(words)?, peer),
        Load::HalfOfTheSlowest(words) => figures(&run(&[words, &["--rate", &plan.pace.to_string()]].concat())?, peer),
        Load::Beside(bulk, words) => {
            // Of less importance, so that it is not the other load that those who are measured wait for.
            let bulk = plan.timed(&server, peer, Priority::Idle, &flags(bulk, number))?.spawn()?;
            let result = run(words);
            let bulk = read_run(bulk.wait_with_output()?)?;
            let mut figures = figures(&result?, peer)?;
            figures.values.insert(Measure::Bulk, bulk.bytes_per_second);
            figures.mismatches += bulk.mismatch_count();
            figures.errors += bulk.error_count() - bulk.mismatch_count();
            Ok(figures)
        }
        Load::Unreading(words) => {
            let before = server.resident()?;
            let mut crowd = Group(
                std::os::unix::process::CommandExt::process_group(
                    &mut plan.own("unreading", &server, Priority::Idle, number)?,
                    0,
                )
                .spawn()?,
            );
            // Until then the load would share its core with those who fill the buffers, and so be measured itself.
            let mut line = String::new();
            BufReader::new(crowd.0.stdout.take().context("no output")?).read_line(&mut line)?;
            let result = run(words);
            let after = server.resident()?;
            let left: usize =
                line.trim().strip_prefix("full ").context("the server dropped those that do not read")?.parse()?;
            let mut figures = figures(&result?, peer)?;
            figures.values.insert(Measure::Memory, (after - before) / number as f64);
            figures.errors += (number - left) as u64;
            Ok(figures)
        }
        Load::Burst => {
            let output = plan.own("burst", &server, Priority::Usual, number)?.output()?;
            let burst: Burst = serde_json::from_slice(&output.stdout).context("the load failed")?;
            let mut values = BTreeMap::from([(Measure::P50, burst.p50_us), (Measure::P99, burst.p99_us)]);
            // Who turns some away is not faster for that.
            if burst.errors == 0 {
                values.insert(Measure::AllEchoed, burst.all_ms);
            }
            Ok(Figures { values, mismatches: burst.mismatches, errors: burst.errors })
        }
        Load::Soak(words) => {
            let run = |count: usize| {
                let counted = ["--warm-up", "0s", "--messages"].map(str::to_owned);
                let all = [&counted[..], &[count.to_string()], &flags(words, number)].concat();
                read_run(plan.bench(&server, peer, Priority::Usual, &all)?.output()?)
            };
            let first = number.div_ceil(200);
            run(first)?;
            let before = server.resident()?;
            let mut figures = figures(&run(number - first)?, peer)?;
            figures.values.insert(Measure::Growth, server.resident()? - before);
            Ok(figures)
        }
    }
}

/// Two cores for server and load, if this process may use two.
fn cores() -> anyhow::Result<Option<(usize, usize)>> {
    let allowed = sched_getaffinity(None)?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    Ok(allowed.next().zip(allowed.next()))
}

/// The results of all servers in one scenario.
fn run_scenario(
    scenario: &Scenario,
    peers: &[Peer],
    rounds: u64,
    mut plan: Plan,
    bar: &ProgressBar,
) -> anyhow::Result<ScenarioResult> {
    let mut entries: Vec<_> = peers
        .iter()
        .filter(|peer| peer.only.is_none_or(|only| only == scenario.name))
        .map(|peer| {
            let outcome = peer.left_out(scenario).map_or(Outcome::Measured(Vec::new()), Outcome::LeftOut);
            (peer, PeerResult { name: peer.name.clone(), outcome })
        })
        .collect();
    let mut about = scenario.about(plan.seconds);
    if let Load::HalfOfTheSlowest(words) = scenario.load {
        let closed = Scenario { load: Load::Bench(words), ..*scenario };
        let mut slowest = f64::INFINITY;
        for (peer, result) in &mut entries {
            bar.set_message(format!("how fast is {}", peer.name));
            let Outcome::Measured(_) = &result.outcome else { continue };
            match measure(peer, &closed, plan) {
                Ok(figures) => slowest = figures.values.get(&Measure::Rate).copied().unwrap_or(slowest).min(slowest),
                Err(error) => result.outcome = Outcome::LeftOut(format!("{error:#}")),
            }
        }
        ensure!(slowest.is_finite(), "no server could be measured");
        plan.pace = (slowest / 2.0).round();
        about = about.replace('R', &HumanCount(plan.pace as u64).to_string());
    }
    for round in 0..rounds {
        let count = entries.len();
        for turn in 0..count {
            let (peer, result) = &mut entries[(turn + round as usize) % count];
            bar.set_message(format!("{}, {}", scenario.name, peer.name));
            bar.inc(1);
            let Outcome::Measured(rounds) = &mut result.outcome else { continue };
            match measure(peer, scenario, plan) {
                Ok(figures) => rounds.push(figures),
                Err(error) => result.outcome = Outcome::LeftOut(format!("{error:#}")),
            }
        }
    }
    Ok(ScenarioResult {
        name: scenario.name.to_owned(),
        about,
        rounds,
        seconds: plan.seconds,
        plain: scenario.plain,
        measures: scenario.measures.to_vec(),
        peers: entries.into_iter().map(|(_, result)| result).collect(),
    })
}

fn compare(cli: &Cli) -> anyhow::Result<()> {
    echoloop::limits::raise_open_files();
    let chosen = |name: &str, wanted: &[String]| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let names = || SCENARIOS.map(|it| it.name).join(", ");
    ensure!(
        SCENARIOS.iter().any(|scenario| chosen(scenario.name, &cli.scenario)),
        "no scenario has such a name: there are {}",
        names()
    );
    let mut peers = servers::peers();
    let first = peers.remove(0);
    peers.retain(|peer| chosen(&peer.name, &cli.peer));
    peers.insert(0, first);
    for other in &cli.also {
        let (name, program) = other.split_once('=').with_context(|| format!("{other:?} is not NAME=PROGRAM"))?;
        let (program, flags) = program.split_once(':').unwrap_or((program, ""));
        ensure!(PathBuf::from(program).is_file(), "{program} is no program");
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        peers.push(Peer::new(name, Start::Echoloop { program: program.to_owned(), flags }));
    }
    let plan = Plan { seconds: cli.seconds, cores: cores()?, pace: f64::NAN };
    let mut results = Results::new(plan.cores.is_some());
    if cli.resume && cli.json.exists() {
        results.scenarios = Results::read(&cli.json)?.scenarios;
    }
    let known: Vec<String> = results.scenarios.iter().map(|scenario| scenario.name.clone()).collect();
    let due: Vec<_> = SCENARIOS
        .iter()
        .filter(|scenario| chosen(scenario.name, &cli.scenario) && !known.iter().any(|name| name == scenario.name))
        .collect();
    let bar = ProgressBar::new(due.len() as u64 * cli.rounds * peers.len() as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len}, {eta} left: {msg}")?);
    for scenario in due {
        let result = run_scenario(scenario, &peers, cli.rounds, plan, &bar)?;
        bar.suspend(|| write!(io::stdout(), "{}", result.table()))?;
        results.scenarios.push(result);
        // In their order, whatever was resumed.
        let place = |result: &ScenarioResult| SCENARIOS.iter().position(|scenario| scenario.name == result.name);
        results.scenarios.sort_by_key(place);
        results.write(&cli.json)?;
    }
    bar.finish_and_clear();
    println!("all figures: {}", cli.json.display());
    let mismatches = results.mismatches();
    ensure!(mismatches == 0, "{mismatches} times wrong bytes came back");
    Ok(())
}
