//! The servers that are compared, and how each is started. They are all told where to listen in the same words, and say
//! where they do.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use echoloop::reactor::Settings;
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

use crate::listening::Listening;
use crate::scenarios::{Kind, Scenario};
use crate::{blocking, epoll, io_uring, tokio_tasks};

pub const ECHOLOOP: &str = env!("CARGO_BIN_EXE_echoloop");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");
const BUILT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/peers");

/// What tokio's and others' connections read into.
const USUAL_BUFFER: usize = 8 * 1024;

/// How a server is started.
pub enum Start {
    /// One of those in this directory that are written in Rust.
    Here,
    Echoloop {
        program: String,
        flags: Vec<String>,
    },
    /// A source in this directory that the program runs.
    Script(&'static str, &'static str),
    /// A source in this directory that is built first: the compiler, its arguments (SOURCE and PROGRAM stand for themselves).
    Built(&'static str, &'static [&'static str]),
    /// A program with a process for each connection, that listens on the port in its arguments, and does not say when.
    Tool(&'static [&'static str]),
}

pub struct Peer {
    pub name: String,
    pub start: Start,
    /// Flags of the load beside the scenario's.
    pub load: &'static [&'static str],
    /// How many connections it can hold.
    pub most: usize,
    /// The only scenario it is for.
    pub only: Option<&'static str>,
}

impl Peer {
    pub fn new(name: &str, start: Start) -> Self {
        Peer { name: name.to_owned(), start, load: &[], most: usize::MAX, only: None }
    }

    fn echoloop(name: &str, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Peer::new(name, Start::Echoloop { program: ECHOLOOP.to_owned(), flags })
    }

    /// It is one process, whose processor time and memory are all there is.
    pub fn is_one_process(&self) -> bool {
        !matches!(self.start, Start::Tool(_))
    }

    /// Why it has no part in a scenario, if it has none.
    pub fn left_out(&self, scenario: &Scenario) -> Option<String> {
        if let Start::Tool(_) = self.start
            && !scenario.takes_processes()
        {
            return Some("a process for each connection".to_owned());
        }
        if scenario.connections() > self.most {
            return Some(match self.most {
                1 => "one connection at a time".to_owned(),
                most => format!("a process for each connection: not beyond {most}"),
            });
        }
        if let Start::Script("python3", _) = self.start
            && scenario.is_paced()
        {
            return Some("it would set a pace that leaves the others idle".to_owned());
        }
        let program = match &self.start {
            Start::Script(program, _) | Start::Built(program, _) => program,
            Start::Tool(words) => words[0],
            _ => return None,
        };
        (!is_installed(program)).then(|| "not installed".to_owned())
    }
}

/// The first is what the others are compared with.
pub fn peers() -> Vec<Peer> {
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
        here("tokio, threads"),
        here("monoio"),
        Peer::new("libuv", Start::Built("cc", &["-O2", "-o", "PROGRAM", "SOURCE/peer_libuv.c", "-luv"])),
        Peer::new("Go", Start::Built("go", &["build", "-o", "PROGRAM", "SOURCE/peer.go"])),
        Peer::new("Node", Start::Script("node", "peer.js")),
        here("threads"),
        Peer { most: 1, ..here("sequential") },
        Peer::new("Python asyncio", Start::Script("python3", "asyncio_server.py")),
        Peer::new("Python threading", Start::Script("python3", "threading_server.py")),
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

/// The body of a server process.
pub fn serve(name: &str, address: &str) -> anyhow::Result<()> {
    echoloop::limits::raise_open_files();
    let listening = Listening::bind(address)?;
    println!("listening on {listening}");
    match name {
        "epoll" => epoll::serve(listening)?,
        "tokio" => tokio_tasks::serve(listening, USUAL_BUFFER)?,
        "tokio, our buffer" => tokio_tasks::serve(listening, Settings::default().read_size)?,
        "tokio, threads" => tokio_tasks::serve_threads(listening, USUAL_BUFFER)?,
        "monoio" => io_uring::serve(listening)?,
        "threads" => blocking::threads(listening)?,
        "sequential" => blocking::sequential(listening)?,
        _ => bail!("there is no server {name:?}"),
    };
    Ok(())
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Becomes `command`, on one core, and ends with the process that started it, however that ends.
pub fn pin(core: usize, command: &[String]) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)?;
    let (program, args) = command.split_first().context("there is no program to run")?;
    Err(Command::new(program).args(args).exec().into())
}

/// Which of two loads on one core gives way to the other at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Usual,
    /// It runs when nobody else would (sched(7), `SCHED_IDLE`), where chrt(1) is there.
    Idle,
}

/// A command that runs on `core`, if there are two.
pub fn pinned(core: Option<usize>, priority: Priority, program: &str, args: &[String]) -> anyhow::Result<Command> {
    let mut words = Vec::new();
    if let Some(core) = core {
        words.extend([
            std::env::current_exe()?.display().to_string(),
            "pin".to_owned(),
            core.to_string(),
            "--".to_owned(),
        ]);
    }
    if priority == Priority::Idle && is_installed("chrt") {
        words.extend(["chrt", "--idle", "0"].map(str::to_owned));
    }
    words.push(program.to_owned());
    let mut command = Command::new(words.remove(0));
    command.args(words).args(args);
    Ok(command)
}

/// A process whose group is killed when it is dropped, with the children that some have.
pub struct Group(pub Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::KILL,
        );
        let _ = self.0.wait();
    }
}

/// A running server.
pub struct Server {
    process: Group,
    /// Where it listens, as `echoloop bench` takes it.
    pub address: String,
    /// The directory of its socket file.
    _directory: TempDir,
}

impl Server {
    pub fn start(peer: &Peer, kind: Kind, core: Option<usize>) -> anyhow::Result<Server> {
        let directory = tempfile::tempdir()?;
        let address = match kind {
            Kind::Tcp => "127.0.0.1:0".to_owned(),
            Kind::Udp => "udp:127.0.0.1:0".to_owned(),
            Kind::Unix => format!("unix:{}/socket", directory.path().display()),
        };
        let mut port = None;
        let (program, args) = match &peer.start {
            Start::Here => {
                let this = std::env::current_exe()?.display().to_string();
                (this, vec!["serve".to_owned(), peer.name.clone(), address])
            }
            Start::Echoloop { program, flags } => {
                let args = ["serve", "-q", &address].map(str::to_owned);
                (program.clone(), [&args[..], flags].concat())
            }
            Start::Script(program, source) => ((*program).to_owned(), vec![format!("{SOURCES}/{source}"), address]),
            Start::Built(compiler, args) => (built(&peer.name, compiler, args)?.display().to_string(), vec![address]),
            Start::Tool(words) => {
                let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
                port = Some(free);
                let words = words.iter().map(|word| word.replace("PORT", &free.port().to_string()));
                let mut words = words.collect::<Vec<_>>();
                (words.remove(0), words)
            }
        };
        let mut command = pinned(core, Priority::Usual, &program, &args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let mut process = Group(child);
        let address = match port {
            Some(address) => {
                let began = Instant::now();
                while TcpStream::connect(address).is_err() {
                    ensure!(began.elapsed() < Duration::from_secs(5), "{program} does not listen");
                    thread::sleep(Duration::from_millis(10));
                }
                address.to_string()
            }
            None => {
                let mut line = String::new();
                BufReader::new(process.0.stdout.take().context("no output")?).read_line(&mut line)?;
                let address = line.trim().strip_prefix("listening on ");
                address.with_context(|| format!("{program} does not listen"))?.to_owned()
            }
        };
        Ok(Server { process, address, _directory: directory })
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Its resident memory, in bytes (proc_pid_smaps(5)).
    pub fn resident(&self) -> anyhow::Result<f64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("no memory is told")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }
}

/// The program that `compiler` makes, once.
fn built(name: &str, compiler: &str, args: &[&str]) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(BUILT)?;
    let program = Path::new(BUILT).join(name);
    let source = args.iter().find_map(|arg| arg.strip_prefix("SOURCE/")).context("it has no source")?;
    let modified = |path: &Path| fs::metadata(path).and_then(|it| it.modified());
    let is_new =
        modified(&program).and_then(|built| Ok(built > modified(&Path::new(SOURCES).join(source))?)).unwrap_or(false);
    if !is_new {
        let place = |arg: &&str| arg.replace("SOURCE", SOURCES).replace("PROGRAM", &program.display().to_string());
        // In a directory of its own, for a compiler may look around for more sources.
        let output = Command::new(compiler).args(args.iter().map(place)).current_dir(BUILT).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{compiler}: {}", error.lines().next().unwrap_or("it failed"));
    }
    Ok(program)
}
