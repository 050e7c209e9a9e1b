//! A service that is started for the check, and ended with it.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a service may take until it listens.
const START: Duration = Duration::from_secs(10);

/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(2);

/// How long one that listens no more may take to end.
const LEAVING: Duration = Duration::from_millis(300);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// A service's process, with all that it starts in its group.
pub(super) struct Service {
    command: String,
    pub port: u16,
    datagrams: bool,
    child: Child,
}

impl Service {
    /// Starts a service on a port that is free, and waits until it listens there.
    ///
    /// # Errors
    ///
    /// If it cannot be started, ends, or does not listen in time.
    pub fn start(template: &str, datagrams: bool) -> anyhow::Result<Self> {
        let port = free_port(datagrams).context("there is no free port")?;
        let command = template.replace("{port}", &port.to_string());
        let child = spawn(&command)?;
        let mut service = Service { command, port, datagrams, child };
        service.wait_until_it_listens()?;
        Ok(service)
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Whether it has ended, and how.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The same; one that listens no more is given the time to end.
    pub fn has_left(&mut self) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            let ended = self.has_ended();
            if ended.is_some() || began.elapsed() > LEAVING || listens(self.port, self.datagrams) {
                return ended;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    ///
    /// As for the first start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.command)?;
        self.wait_until_it_listens()
    }

    fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !listens(self.port, self.datagrams) {
            if let Some(status) = self.has_ended() {
                bail!("--exec: {:?} has ended before it listened on port {}: {status}", self.command, self.port);
            }
            if began.elapsed() > START {
                bail!("--exec: {:?} does not listen on port {} after {START:?}", self.command, self.port);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.pid());
        let began = Instant::now();
        // What cannot be signalled has ended.
        let _ = killpg(group, Signal::SIGTERM);
        while self.has_ended().is_none() && began.elapsed() < END {
            std::thread::sleep(LOOK);
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn spawn(command: &str) -> anyhow::Result<Child> {
    // What it prints is not part of the results; what it complains of is worth seeing.
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    shell.spawn().with_context(|| format!("--exec: cannot start {command:?}"))
}

fn free_port(datagrams: bool) -> std::io::Result<u16> {
    let any = (Ipv4Addr::LOCALHOST, 0);
    Ok(match datagrams {
        true => UdpSocket::bind(any)?.local_addr()?.port(),
        false => TcpListener::bind(any)?.local_addr()?.port(),
    })
}

/// Whether somebody listens on a port. Linux tells without a connection, which would be one too many for a service that
/// accepts only one (proc(5), /proc/net/tcp).
#[cfg(target_os = "linux")]
fn listens(port: u16, datagrams: bool) -> bool {
    use procfs::net::{TcpState, tcp, tcp6, udp, udp6};
    if datagrams {
        let entries = udp().into_iter().flatten().chain(udp6().into_iter().flatten());
        return entries.into_iter().any(|entry| entry.local_address.port() == port);
    }
    let entries = tcp().into_iter().flatten().chain(tcp6().into_iter().flatten());
    entries.into_iter().any(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
}

#[cfg(not(target_os = "linux"))]
fn listens(port: u16, datagrams: bool) -> bool {
    datagrams || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}
