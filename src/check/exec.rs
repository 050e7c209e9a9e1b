//! A service that is started for the check, and ended with it.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::lab::Lab;
use super::verdict::Stop;
use crate::reactor::address::Endpoint;

/// How long a service may take until it listens.
const START: Duration = Duration::from_secs(10);

/// How long it may take to end when it is asked to.
pub(super) const END: Duration = Duration::from_secs(1);

/// How long one that listens no more may take to end.
const LEAVING: Duration = Duration::from_millis(300);

/// The flag of a Unix socket that accepts connections (`__SO_ACCEPTCON` in Linux).
#[cfg(target_os = "linux")]
const ACCEPTS: u32 = 1 << 16;

/// How often it is looked at meanwhile, at most.
const LOOK: Duration = Duration::from_millis(10);

/// What a command may have in place of the port.
pub(super) const PORT: &str = "{port}";

/// A service's process, with all that it starts.
pub(super) struct Service {
    command: String,
    endpoint: Endpoint,
    child: Child,
    /// How the first process has ended, if it has.
    status: Option<ExitStatus>,
}

/// Addresses of one name with a port that is free in place of port 0.
///
/// # Errors
///
/// If there is none, or an address is none of this machine.
pub(super) fn with_free_port(mut endpoints: Vec<Endpoint>) -> anyhow::Result<Vec<Endpoint>> {
    let found = match &endpoints[0] {
        Endpoint::Tcp(address) if address.port() == 0 => TcpListener::bind(address).and_then(|it| it.local_addr()),
        Endpoint::Udp(address) if address.port() == 0 => UdpSocket::bind(address).and_then(|it| it.local_addr()),
        _ => return Ok(endpoints),
    };
    let free = found.context("--exec: there is no free port for the service")?.port();
    for endpoint in &mut endpoints {
        if let Endpoint::Tcp(address) | Endpoint::Udp(address) = endpoint {
            address.set_port(free);
        }
    }
    Ok(endpoints)
}

impl Service {
    /// Starts a service, and waits until it listens where the lab will look for it.
    ///
    /// # Errors
    ///
    /// If it cannot be started, ends, or does not listen in time; or if the wait was ended.
    pub fn start(template: &str, lab: &mut Lab) -> anyhow::Result<Result<Self, Stop>> {
        let endpoint = lab.endpoint.clone();
        if listens(&endpoint) {
            bail!("--exec: something listens on {endpoint} already: stop it, or let check choose a free port (port 0)");
        }
        adopt_orphans();
        let command = template.replace(PORT, &port(&endpoint).unwrap_or_default().to_string());
        let child = spawn(&command)?;
        lab.take_along(Some(child.id().cast_signed()));
        let mut service = Service { command, endpoint, child, status: None };
        Ok(service.wait_until_it_listens(lab)?.map(|()| service))
    }

    /// A process that it is, or whose child it is.
    pub fn pid(&self) -> i32 {
        match family::is_known() && self.status.is_some() {
            true => std::process::id().cast_signed(),
            false => self.child.id().cast_signed(),
        }
    }

    /// Whether nothing of it is left, and how the first process ended.
    fn has_ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        // The command may have started what serves and ended itself, as a daemon does.
        self.status.filter(|_| family::members().is_empty())
    }

    /// The same; one that listens no more is given the time to end.
    pub fn has_left(&mut self, lab: &mut Lab) -> Result<Option<ExitStatus>, Stop> {
        let began = Instant::now();
        loop {
            let ended = self.has_ended();
            if ended.is_some() || began.elapsed() > LEAVING || listens(&self.endpoint) {
                return Ok(ended);
            }
            lab.rest(LOOK)?;
        }
    }

    /// Starts it again, after it has ended or must.
    ///
    /// # Errors
    ///
    /// As for the first start.
    pub fn restart(&mut self, lab: &mut Lab) -> anyhow::Result<Result<(), Stop>> {
        self.end();
        self.child = spawn(&self.command)?;
        self.status = None;
        lab.take_along(Some(self.child.id().cast_signed()));
        self.wait_until_it_listens(lab)
    }

    fn wait_until_it_listens(&mut self, lab: &mut Lab) -> anyhow::Result<Result<(), Stop>> {
        let began = Instant::now();
        let (command, endpoint) = (self.command.clone(), self.endpoint.clone());
        loop {
            let look = Instant::now();
            if listens(&endpoint) {
                return Ok(Ok(()));
            }
            // The kernel's table may be long, where many connections have just ended.
            let pause = (4 * look.elapsed()).clamp(LOOK, 10 * LOOK);
            if let Some(status) = self.has_ended() {
                bail!("--exec: {command:?} exited before it listened on {endpoint}: {status}");
            }
            if began.elapsed() > START {
                bail!("--exec: {command:?} was not listening on {endpoint} after {} s", START.as_secs());
            }
            if let Err(stop) = lab.rest(pause) {
                return Ok(Err(stop));
            }
        }
    }

    /// Ends it and all that it has started: first they are asked to.
    fn end(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let began = Instant::now();
        // What cannot be signalled has ended.
        let signal = |signal: Signal| {
            let _ = killpg(group, signal);
            for member in family::members() {
                let _ = kill(Pid::from_raw(member), signal);
            }
        };
        signal(Signal::SIGTERM);
        while self.has_ended().is_none() && began.elapsed() < END {
            std::thread::sleep(LOOK);
        }
        signal(Signal::SIGKILL);
        let _ = self.child.wait();
        family::bury();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(command: &str) -> anyhow::Result<Child> {
    // What it prints is not part of the results; what it complains of is worth seeing.
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    shell.spawn().with_context(|| format!("--exec: cannot start {command:?}"))
}

/// Has what the service leaves behind become this process's children, so that it can be ended (prctl(2),
/// PR_SET_CHILD_SUBREAPER).
fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// What the service consists of beside its first process.
mod family {
    /// Whether that can be known.
    pub fn is_known() -> bool {
        cfg!(target_os = "linux")
    }

    /// All processes that descend from this one: it starts nothing else.
    #[cfg(target_os = "linux")]
    pub fn members() -> Vec<i32> {
        let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
        let stats: Vec<_> = all.filter_map(|process| process.ok()?.stat().ok()).collect();
        let mut family = vec![std::process::id().cast_signed()];
        let mut at = 0;
        while at < family.len() {
            let parent = family[at];
            // Those that have ended and wait to be asked about are over.
            family.extend(stats.iter().filter(|stat| stat.ppid == parent && stat.state != 'Z').map(|stat| stat.pid));
            at += 1;
        }
        family.split_off(1)
    }

    #[cfg(not(target_os = "linux"))]
    pub fn members() -> Vec<i32> {
        Vec::new()
    }

    /// Takes note of the ends of those that were adopted.
    pub fn bury() {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG))
            && status != WaitStatus::StillAlive
        {}
    }
}

fn port(endpoint: &Endpoint) -> Option<u16> {
    match endpoint {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => Some(address.port()),
        Endpoint::Unix(_) => None,
    }
}

/// Whether somebody listens there. Linux tells without a connection, which would be one too many for a service that
/// accepts only one (proc(5), /proc/net/tcp).
#[cfg(target_os = "linux")]
fn listens(endpoint: &Endpoint) -> bool {
    use procfs::net::{TcpState, tcp, tcp6, udp, udp6};
    match endpoint {
        Endpoint::Udp(address) => {
            let entries = udp().into_iter().flatten().chain(udp6().into_iter().flatten());
            entries.into_iter().any(|entry| entry.local_address.port() == address.port())
        }
        Endpoint::Tcp(address) => {
            let entries = tcp().into_iter().flatten().chain(tcp6().into_iter().flatten());
            let mut listening = entries.into_iter().filter(|entry| entry.state == TcpState::Listen);
            listening.any(|entry| entry.local_address.port() == address.port())
        }
        Endpoint::Unix(path) => {
            let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
            table.lines().filter_map(accepting).any(|bound| bound.file_name() == path.file_name())
        }
    }
}

/// The path of a Unix socket that accepts connections, from a line of /proc/net/unix: the fourth field is of flags, what
/// follows the seventh is the path, as whoever bound it wrote it.
#[cfg(target_os = "linux")]
fn accepting(line: &str) -> Option<&std::path::Path> {
    let flags = u32::from_str_radix(line.split_whitespace().nth(3)?, 16).ok()?;
    let path = (0..7).try_fold(line, |rest, _| Some(rest.trim_start().split_once(' ')?.1))?;
    (flags & ACCEPTS != 0).then(|| std::path::Path::new(path))
}

#[cfg(not(target_os = "linux"))]
fn listens(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Udp(_) => true,
        Endpoint::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
        Endpoint::Unix(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn accepting_sockets_are_told_from_others() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01    41 /run/a socket";
        assert_eq!(accepting(line), Some("/run/a socket".as_ref()));
        assert_eq!(accepting("0000000000000000: 00000003 00000000 00000000 0001 03 40119 /run/a"), None);
        assert_eq!(accepting("0000000000000000: 00000002 00000000 00010000 0001 01 41"), None);
    }
}
