//! The servers, the scenarios, and the rounds.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use echoloop::bench::Run;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use crate::results::{Figures, Outcome, Peer as PeerResult, Results, Scenario as ScenarioResult};
use crate::{blocking, chart, epoll, io_uring, tokio_tasks};

const ECHOLOOP: &str = env!("CARGO_BIN_EXE_echoloop");
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// Compares echoloop with other echo servers on this machine. Takes some minutes.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,

    /// Rounds; each server has its turn in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,

    /// How long a server is measured in a round, in seconds
    #[arg(long, default_value_t = 2.0)]
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

    /// Write all figures to FILE
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/peers.json"))]
    json: PathBuf,

    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Write the table and the picture of docs/performance.md from the figures in FILE
    Docs { file: PathBuf },
    /// Be one of the servers
    #[command(hide = true)]
    Serve { name: String },
    /// Run a program on one core
    #[command(hide = true)]
    Pin {
        core: usize,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// A way to load a server.
struct Scenario {
    name: &'static str,
    about: &'static str,
    load: &'static [&'static str],
    /// Connections, so that servers that cannot hold as many are left out.
    connections: usize,
    /// It is the memory that counts, and not messages.
    memory: bool,
}

const SCENARIOS: [Scenario; 8] = [
    Scenario { name: "ping", about: "1 connection, 64 B", load: &["-c", "1"], connections: 1, memory: false },
    Scenario { name: "100", about: "100 connections, 64 B", load: &["-c", "100"], connections: 100, memory: false },
    Scenario {
        name: "1000",
        about: "1,000 connections, 64 B",
        load: &["-c", "1000"],
        connections: 1000,
        memory: false,
    },
    Scenario {
        name: "pipelined",
        about: "50 connections, 64 B, 32 in flight",
        load: &["-c", "50", "-d", "32"],
        connections: 50,
        memory: false,
    },
    Scenario {
        name: "bulk",
        about: "8 connections, 64 KiB, 4 in flight",
        load: &["-c", "8", "-d", "4", "-s", "64KiB"],
        connections: 8,
        memory: false,
    },
    Scenario {
        name: "idle",
        about: "100 connections, 64 B, beside 8,000 idle ones",
        load: &["-c", "100", "--idle", "8000"],
        connections: 8100,
        memory: false,
    },
    Scenario {
        name: "churn",
        about: "20 connections, each closed after one echo and opened again",
        // Several addresses, because closed connections keep their ports for a while.
        load: &["-c", "20", "--reconnect", "1", "--source", "127.0.0.1-127.0.0.9"],
        connections: 20,
        memory: false,
    },
    Scenario {
        name: "memory",
        about: "15,000 idle connections",
        load: &["-c", "0", "--idle", "15000"],
        connections: 15_000,
        memory: true,
    },
];

/// How a server is started.
enum Start {
    /// One of those in this directory.
    Here,
    Echoloop {
        program: String,
        flags: Vec<String>,
    },
    Python(&'static str),
    /// A program that listens on the port in its arguments, and does not say when.
    Tool(&'static [&'static str]),
}

struct Peer {
    name: String,
    start: Start,
    /// Flags of the load beside the scenario's.
    load: &'static [&'static str],
    /// How many connections it can hold.
    most: usize,
    /// The only scenario it is for.
    only: Option<&'static str>,
}

impl Peer {
    fn new(name: &str, start: Start) -> Self {
        Peer { name: name.to_owned(), start, load: &[], most: usize::MAX, only: None }
    }

    fn echoloop(name: &str, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Peer::new(name, Start::Echoloop { program: ECHOLOOP.to_owned(), flags })
    }
}

/// The first is what the others are compared with.
fn peers() -> Vec<Peer> {
    let spin = ["--busy-poll", "100us"];
    let here = |name| Peer::new(name, Start::Here);
    vec![
        here("epoll"),
        Peer::echoloop("echoloop", &[]),
        Peer { only: Some("ping"), ..Peer::echoloop("echoloop --busy-poll", &spin) },
        Peer {
            only: Some("ping"),
            load: &["--busy-poll", "100us"],
            ..Peer::echoloop("echoloop --busy-poll, and the load too", &spin)
        },
        here("tokio"),
        here("tokio, our buffer"),
        here("monoio"),
        here("threads"),
        Peer { most: 1, ..here("sequential") },
        Peer::new("Python asyncio", Start::Python("asyncio_server.py")),
        Peer::new("Python threading", Start::Python("threading_server.py")),
        // A process for each connection.
        Peer {
            most: 100,
            ..Peer::new("socat", Start::Tool(&["socat", "TCP-LISTEN:PORT,fork,reuseaddr,nodelay,backlog=4096", "PIPE"]))
        },
        Peer {
            most: 50,
            ..Peer::new("ncat", Start::Tool(&["ncat", "-l", "-k", "-m", "5000", "127.0.0.1", "PORT", "-e", "/bin/cat"]))
        },
    ]
}

pub fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        None => compare(&cli),
        Some(Action::Docs { file }) => {
            let results = Results::read(file)?;
            results.write_table()?;
            Ok(fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/peers.svg"), chart::draw(&results)?)?)
        }
        Some(Action::Serve { name }) => serve(name),
        Some(Action::Pin { core, command }) => pin(*core, command),
    }
}

/// The body of a server process.
fn serve(name: &str) -> anyhow::Result<()> {
    echoloop::limits::raise_open_files();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    println!("listening on {}", listener.local_addr()?);
    match name {
        "epoll" => epoll::serve(listener)?,
        "tokio" => tokio_tasks::serve(listener, 8 * 1024)?,
        "tokio, our buffer" => {
            tokio_tasks::serve(listener, echoloop::reactor::Settings::default().read_size)?;
        }
        "monoio" => io_uring::serve(listener)?,
        "threads" => blocking::threads(listener)?,
        "sequential" => blocking::sequential(listener)?,
        _ => bail!("there is no server {name:?}"),
    }
    Ok(())
}

/// Becomes `command`, on one core.
fn pin(core: usize, command: &[String]) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)?;
    let (program, args) = command.split_first().context("there is no program to run")?;
    Err(Command::new(program).args(args).exec().into())
}

/// A command that runs on `core`, if there are two.
fn pinned(core: Option<usize>, program: &str, args: &[String]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    match core {
        Some(core) => _ = command.args(["pin", &core.to_string(), "--", program]),
        None => command = Command::new(program),
    }
    command.args(args);
    Ok(command)
}

/// A running server. Its process group is killed when it is dropped, with the children that some have.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(peer: &Peer, core: Option<usize>) -> anyhow::Result<Server> {
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let mut port = None;
        let (program, args) = match &peer.start {
            Start::Here => (std::env::current_exe()?.display().to_string(), owned(&["serve", &peer.name])),
            Start::Echoloop { program, flags } => {
                (program.clone(), [owned(&["serve", "-q", "127.0.0.1:0"]), flags.clone()].concat())
            }
            Start::Python(script) => ("python3".to_owned(), owned(&[&format!("{PEERS}/{script}")])),
            Start::Tool(words) => {
                let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
                port = Some(free);
                let words = words.iter().map(|word| word.replace("PORT", &free.port().to_string()));
                let mut words = words.collect::<Vec<_>>();
                (words.remove(0), words)
            }
        };
        let mut command = pinned(core, &program, &args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let mut server = Server { child, addr: SocketAddr::from(([127, 0, 0, 1], 0)) };
        server.addr = match port {
            Some(addr) => {
                let began = Instant::now();
                while TcpStream::connect(addr).is_err() {
                    ensure!(began.elapsed() < Duration::from_secs(5), "{program} does not listen");
                    thread::sleep(Duration::from_millis(10));
                }
                addr
            }
            None => {
                let mut line = String::new();
                BufReader::new(server.child.stdout.take().context("no output")?).read_line(&mut line)?;
                let addr = line.trim().strip_prefix("listening on ");
                addr.with_context(|| format!("{program} does not listen"))?.parse()?
            }
        };
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::KILL,
        );
        let _ = self.child.wait();
    }
}

/// Why a server has no part in a scenario, if it has none.
fn left_out(peer: &Peer, scenario: &Scenario) -> Option<String> {
    if scenario.connections > peer.most {
        return Some(match peer.most {
            1 => "one connection at a time".to_owned(),
            most => format!("a process for each connection: not beyond {most}"),
        });
    }
    let program = match &peer.start {
        Start::Python(_) => "python3",
        Start::Tool(words) => words[0],
        _ => return None,
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    (!installed).then(|| "not installed".to_owned())
}

/// One server, one scenario, one round.
fn measure(peer: &Peer, scenario: &Scenario, seconds: f64, cores: Option<(usize, usize)>) -> anyhow::Result<Figures> {
    let server = Server::start(peer, cores.map(|(server, _)| server))?;
    let mut args: Vec<String> = ["bench", &server.addr.to_string(), "-q", "--json", "-"].map(str::to_owned).into();
    args.extend(["--watch-pid".to_owned(), server.child.id().to_string()]);
    args.extend(["--warm-up", "300ms", "--duration"].map(str::to_owned));
    args.push(format!("{}ms", (seconds * 1000.0) as u64));
    args.extend(scenario.load.iter().chain(peer.load).map(|&flag| flag.to_owned()));
    let mut load = pinned(cores.map(|(_, load)| load), ECHOLOOP, &args)?;
    let output = load.stderr(Stdio::piped()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    // The report is on standard error here; only a line that begins so is an error.
    let error = errors.lines().find(|line| line.starts_with("echoloop: ") || line.starts_with("error: "));
    let run = String::from_utf8(output.stdout)?;
    let run = Run::parse(&run).with_context(|| error.unwrap_or("the load failed").to_owned())?;
    let watched = run.watched.as_ref().context("the server's process could not be watched")?;
    let one_process = !matches!(peer.start, Start::Tool(_));
    Ok(Figures {
        rate: run.rate,
        p50_us: run.response.p50_us,
        p99_us: run.response.p99_us,
        cpu_us: one_process.then_some(watched.cpu_us_per_message),
        bytes_per_connection: one_process.then_some(watched.resident_per_connection),
        mismatches: run.mismatch_count(),
        errors: run.error_count() - run.mismatch_count(),
    })
}

/// Two cores for server and load, if this process may use two.
fn cores() -> anyhow::Result<Option<(usize, usize)>> {
    let allowed = sched_getaffinity(None)?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    Ok(allowed.next().zip(allowed.next()))
}

fn compare(cli: &Cli) -> anyhow::Result<()> {
    echoloop::limits::raise_open_files();
    let chosen = |name: &str, wanted: &[String]| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let scenarios: Vec<_> = SCENARIOS.iter().filter(|scenario| chosen(scenario.name, &cli.scenario)).collect();
    ensure!(!scenarios.is_empty(), "no scenario has such a name: there are {}", SCENARIOS.map(|it| it.name).join(", "));
    let mut peers = peers();
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
    let cores = cores()?;
    let mut results = Results::new(cores.is_some(), cli.rounds, cli.seconds);
    let bar = ProgressBar::new(scenarios.len() as u64 * cli.rounds * peers.len() as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len}, {eta} left: {msg}")?);
    for scenario in scenarios {
        let mut entries: Vec<_> = peers
            .iter()
            .filter(|peer| peer.only.is_none_or(|only| only == scenario.name))
            .map(|peer| {
                let outcome = left_out(peer, scenario).map_or(Outcome::Measured(Vec::new()), Outcome::LeftOut);
                (peer, PeerResult { name: peer.name.clone(), outcome })
            })
            .collect();
        for round in 0..cli.rounds {
            let count = entries.len();
            for turn in 0..count {
                let (peer, result) = &mut entries[(turn + round as usize) % count];
                bar.set_message(format!("{}, {}", scenario.about, peer.name));
                bar.inc(1);
                let Outcome::Measured(rounds) = &mut result.outcome else { continue };
                match measure(peer, scenario, cli.seconds, cores) {
                    Ok(figures) => rounds.push(figures),
                    Err(error) => result.outcome = Outcome::LeftOut(format!("{error:#}")),
                }
            }
        }
        let result = ScenarioResult {
            name: scenario.name.to_owned(),
            about: scenario.about.to_owned(),
            memory: scenario.memory,
            peers: entries.into_iter().map(|(_, result)| result).collect(),
        };
        bar.suspend(|| write!(io::stdout(), "{}", result.table()))?;
        results.scenarios.push(result);
        fs::write(&cli.json, serde_json::to_string_pretty(&results)?)
            .with_context(|| format!("cannot write {}", cli.json.display()))?;
    }
    bar.finish_and_clear();
    println!("all figures: {}", cli.json.display());
    let mismatches = results.mismatches();
    ensure!(mismatches == 0, "{mismatches} times wrong bytes came back");
    Ok(())
}
