//! Servers, generators, and what is looked at meanwhile.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use comfy_table::presets;
use echoloop::bench::{Run, merge};
use echoloop::limits;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::machine::{self, Memory, Plan};
use crate::results::{Results, Size};

const ECHOLOOP: &str = env!("CARGO_BIN_EXE_echoloop");

/// Connections per second that any machine opens, so that the time by which all are open can be told beforehand.
const SLOWEST: u64 = 8_000;

/// Loopback addresses that each generator dials from. The fuller an address's ports are, the longer the kernel searches for
/// a free one: with one address for each generator this took nine tenths of all processor time.
const SOURCES: u32 = 16;

/// How long it takes until each connection has sent one message, in seconds.
const ROUND: u64 = 20;

/// A million connections on this machine, or as many as it allows. Takes some minutes.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,

    /// So many connections; may be given several times
    #[arg(long, value_name = "N", default_values_t = [19_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1..))]
    connections: Vec<u64>,

    /// Write all figures to FILE
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/million.json"))]
    json: PathBuf,

    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Write the table of docs/performance.md from the figures in FILE
    Docs { file: PathBuf },
    /// Become echoloop, and end when whoever started this ends
    #[command(hide = true)]
    Tied {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

pub fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Some(Action::Docs { file }) => Results::read(file)?.write_docs(),
        Some(Action::Tied { args }) => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Err(Command::new(ECHOLOOP).args(args).exec().into())
        }
        None => measure_all(&cli),
    }
}

fn measure_all(cli: &Cli) -> anyhow::Result<()> {
    let open_files = limits::raise_open_files().unwrap_or(1 << 20);
    let mut results = Results {
        echoloop: env!("CARGO_PKG_VERSION").to_owned(),
        processors: thread::available_parallelism().map_or(1, usize::from),
        open_files,
        memory_mib: Memory::now()?.available >> 20,
        sizes: Vec::new(),
    };
    let limits = machine::limits(open_files)?;
    for (limit, allows) in &limits {
        println!("{limit} allows {} connections", HumanCount(*allows));
    }
    for &wanted in &cli.connections {
        let (limit, allowed) = limits.iter().min_by_key(|(_, allows)| allows).context("there is no limit")?;
        if *allowed < wanted {
            println!("\n{} are more than can be: {} it is, by {limit}", HumanCount(wanted), HumanCount(*allowed));
        }
        let plan = machine::plan(wanted.min(*allowed), open_files)?;
        println!(
            "\n{} connections: {} servers on one port, {} generators with up to {} each",
            HumanCount(plan.connections),
            plan.servers,
            plan.generators,
            HumanCount(plan.each)
        );
        results.sizes.push(measure(&plan)?);
        std::fs::write(&cli.json, serde_json::to_string_pretty(&results)?)
            .with_context(|| format!("cannot write {}", cli.json.display()))?;
    }
    println!("\n{}\nall figures: {}", results.table(presets::NOTHING), cli.json.display());
    let unsound = results.sizes.iter().find(|size| !size.is_sound());
    if let Some(size) = unsound {
        bail!(
            "of {} connections only {} messages came back right, with {} errors",
            HumanCount(size.connections),
            HumanCount(size.messages),
            HumanCount(size.errors)
        );
    }
    Ok(())
}

/// A process of echoloop, which ends when this is dropped.
struct Process(Child);

impl Process {
    fn start(args: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["tied", "--"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Process(command.spawn()?))
    }

    fn resident(&self) -> anyhow::Result<u64> {
        let process = procfs::process::Process::new(self.0.id().cast_signed())?;
        Ok(process.statm()?.resident * procfs::page_size())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Server {
    process: Process,
    addr: SocketAddr,
    inside: SocketAddr,
}

impl Server {
    fn start(addr: SocketAddr) -> anyhow::Result<Self> {
        let args = ["serve", "-q", "--reuse-port", "--http", "0", &addr.to_string()].map(str::to_owned);
        let mut process = Process::start(&args)?;
        let mut lines = BufReader::new(process.0.stdout.take().context("no output")?).lines();
        let mut told = |prefix: &str| -> anyhow::Result<SocketAddr> {
            let line = lines.next().context("the server does not start")??;
            let told = line.strip_prefix(prefix).with_context(|| format!("the server says {line:?}"))?;
            Ok(told.trim_end_matches('/').parse()?)
        };
        let (addr, inside) = (told("listening on ")?, told("inside: http://")?);
        Ok(Server { process, addr, inside })
    }

    /// How many connections it has.
    fn connections(&self) -> anyhow::Result<u64> {
        let mut stream = TcpStream::connect(self.inside)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.inside)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix("echoloop_connections "));
        Ok(line.context("the server does not tell its connections")?.trim().parse::<f64>()? as u64)
    }
}

/// What ten busy connections see.
fn busy(addr: SocketAddr) -> anyhow::Result<Run> {
    let args = ["bench", "-q", "-c", "10", "-t", "5s", "--json", "-", &addr.to_string()].map(str::to_owned);
    finish(Process::start(&args)?)
}

/// Waits for a generator, and reads its run.
fn finish(mut generator: Process) -> anyhow::Result<Run> {
    let mut text = String::new();
    generator.0.stdout.take().context("no output")?.read_to_string(&mut text)?;
    let mut errors = String::new();
    generator.0.stderr.take().context("no output")?.read_to_string(&mut errors)?;
    generator.0.wait()?;
    Run::parse(&text).with_context(|| errors.lines().last().unwrap_or("a generator failed").to_owned())
}

fn measure(plan: &Plan) -> anyhow::Result<Size> {
    let mut servers = vec![Server::start(([127, 0, 0, 1], 0).into())?];
    let addr = servers[0].addr;
    for _ in 1..plan.servers {
        servers.push(Server::start(addr)?);
    }
    let connections = || servers.iter().map(Server::connections).sum::<anyhow::Result<u64>>();
    let resident =
        |processes: &mut dyn Iterator<Item = &Process>| processes.map(Process::resident).sum::<anyhow::Result<u64>>();
    let alone = busy(addr)?;
    let before = Memory::now()?;
    let servers_before: u64 = resident(&mut servers.iter().map(|server| &server.process))?;

    let began = Instant::now();
    let start = SystemTime::now() + Duration::from_secs(12 + plan.connections / SLOWEST);
    let mut generators = Vec::new();
    for number in 0..plan.generators {
        let count = plan.each.min(plan.connections - number * plan.each);
        let first = u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number as u32 * SOURCES;
        let [first, last] = [first, first + SOURCES - 1].map(Ipv4Addr::from);
        let args = format!(
            "bench {addr} -q -c {count} --source {first}-{last} --timeout 2m --warm-up 0s --start-at {} --rate {} -t {}s -n {} \
             --json -",
            humantime::format_rfc3339_millis(start),
            count as f64 / ROUND as f64,
            // Every message has been due by then.
            2 * ROUND + 1,
            2 * count
        );
        generators.push(Process::start(&args.split(' ').map(str::to_owned).collect::<Vec<_>>())?);
    }
    let generators_before: u64 = resident(&mut generators.iter())?;

    let progress = ProgressBar::new(plan.connections)
        .with_style(ProgressStyle::with_template("{bar:40} {human_pos} connections, {msg}")?);
    let mut open = 0;
    while open < plan.connections && SystemTime::now() < start {
        thread::sleep(Duration::from_millis(200));
        open = connections()?;
        progress.set_position(open);
        progress.set_message(format!("{} s", began.elapsed().as_secs()));
    }
    let seconds_to_open = began.elapsed().as_secs_f64();
    progress.finish_and_clear();
    ensure!(
        open == plan.connections,
        "only {} of {} connections were open after {seconds_to_open:.0} s",
        HumanCount(open),
        HumanCount(plan.connections)
    );
    println!("all are open after {seconds_to_open:.1} s");

    let each = |bytes: f64| bytes / plan.connections as f64;
    let grown = |now: u64, before: u64| each(now as f64 - before as f64);
    let during = Memory::now()?;
    let server_bytes = grown(resident(&mut servers.iter().map(|server| &server.process))?, servers_before);
    let generator_bytes = grown(resident(&mut generators.iter())?, generators_before);
    let spread = servers.iter().map(Server::connections).collect::<anyhow::Result<Vec<_>>>()?;
    println!(
        "{} TCP sockets; memory for each connection: servers {server_bytes:.0} B, generators {generator_bytes:.0} B, slabs \
         {:.0} B, TCP buffers {:.0} B",
        HumanCount(during.sockets),
        grown(during.slab, before.slab),
        grown(during.tcp, before.tcp)
    );
    let beside = busy(addr)?;
    ensure!(SystemTime::now() < start, "the time to start has passed before all was looked at");
    println!("ten busy ones beside them: p50 {:.0} us, p99 {:.0} us", beside.response.p50_us, beside.response.p99_us);

    // All are still open in the middle of the messages, and when the last are due.
    for at in [ROUND, 2 * ROUND] {
        let at = start + Duration::from_secs(at) - Duration::from_secs(1);
        thread::sleep(at.duration_since(SystemTime::now()).unwrap_or_default());
        let open = connections()?;
        ensure!(open == plan.connections, "{} connections are left", HumanCount(open));
    }
    let runs = generators.into_iter().map(finish).collect::<anyhow::Result<Vec<_>>>()?;
    for warning in runs.iter().flat_map(|run| &run.generator.warnings).take(3) {
        println!("warning: {warning}");
    }
    let named: Vec<_> = (1..).map(|number| format!("generator {number}")).zip(runs).collect();
    let merged = merge(&named, None)?;
    println!(
        "{} messages, all verified, in {:.0} s: p50 {:.0} us, p99 {:.0} us",
        HumanCount(merged.response.count),
        merged.seconds,
        merged.response.p50_us,
        merged.response.p99_us
    );
    for error in &merged.errors {
        println!("{}: {}", error.kind.counted(error.count), error.first);
    }
    Ok(Size {
        connections: plan.connections,
        servers: plan.servers,
        generators: plan.generators,
        seconds_to_open,
        fewest: spread.iter().copied().min().unwrap_or_default(),
        most: spread.iter().copied().max().unwrap_or_default(),
        server_bytes,
        generator_bytes,
        kernel_bytes: grown(during.slab, before.slab) + grown(during.tcp, before.tcp),
        all_bytes: each(before.available as f64 - during.available as f64),
        messages: merged.response.count,
        errors: merged.error_count(),
        alone_p50_us: alone.response.p50_us,
        alone_p99_us: alone.response.p99_us,
        beside_p50_us: beside.response.p50_us,
        beside_p99_us: beside.response.p99_us,
    })
}
