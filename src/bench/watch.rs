//! Watching the server's process: its processor time and its resident memory (proc(5)). Linux alone tells them this way.
//!
//! There is one clock: the process's own, which counts what all its threads have used, those that have ended too, in
//! nanoseconds (clock_getcpuclockid(3)). Its children, and theirs, are watched with it.

use std::time::Duration;

use super::dial::Route;

/// What a process and its children have used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// Processor time of all their threads.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// How exactly one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// At the children that are known, and at counters that may be off by some hundred KiB, which costs little.
    Rough,
    /// At all children there are now.
    Children,
    /// With their pages counted too, if that is permitted.
    Exact,
}

/// A process that is watched.
#[derive(Debug)]
pub(super) struct Watch {
    pub pid: i32,
    /// The most resident memory that was seen.
    pub peak: u64,
    /// It has ended, and what is told of it is how it was when it was last seen.
    pub ended: bool,
    last: Usage,
    #[cfg(target_os = "linux")]
    family: linux::Family,
}

#[cfg(not(target_os = "linux"))]
impl Watch {
    /// Begins to watch a process.
    ///
    /// # Errors
    ///
    /// Always, on this system.
    pub fn new(pid: i32, _: &[Route]) -> anyhow::Result<Self> {
        anyhow::bail!("cannot watch process {pid}: only Linux tells what is needed (--watch-pid)")
    }

    /// What it has used, or had when it was last seen.
    pub fn look(&mut self, _: Precision) -> Usage {
        self.last
    }
}

#[cfg(target_os = "linux")]
impl Watch {
    /// Begins to watch a process, which is to be the server at the end of one of these routes.
    ///
    /// # Errors
    ///
    /// If there is no such process, it has ended already, or it can be seen that it is not the server.
    pub fn new(pid: i32, routes: &[Route]) -> anyhow::Result<Self> {
        use anyhow::{Context, bail};

        let cannot = || format!("cannot watch process {pid} (--watch-pid)");
        let mut family = linux::Family::of(pid).with_context(cannot)?;
        let Some(last) = family.look(Precision::Exact) else {
            bail!("{}: it has ended, and waits for its parent to take notice", cannot());
        };
        if let Some(stranger) = family.explain_stranger(routes) {
            bail!("{}: {stranger}", cannot());
        }
        Ok(Watch { pid, peak: last.resident, ended: false, last, family })
    }

    /// What it has used, or had when it was last seen.
    pub fn look(&mut self, precision: Precision) -> Usage {
        match self.family.look(precision) {
            Some(usage) => {
                // What a child used is lost if nobody waited (wait(2)) for it.
                let cpu = usage.cpu.max(self.last.cpu);
                self.last = Usage { cpu, ..usage };
                self.peak = self.peak.max(usage.resident);
            }
            None => self.ended = true,
        }
        self.last
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::path::Path;
    use std::time::Duration;

    use nix::time::{clock_getcpuclockid, clock_gettime};
    use nix::unistd::Pid;
    use procfs::ProcResult;
    use procfs::net::{self, TcpState, UnixNetEntry};
    use procfs::process::{FDTarget, Process, Stat, all_processes};

    use super::{Precision, Usage};
    use crate::bench::dial::Route;
    use crate::reactor::address::Endpoint;

    /// A process, its children, theirs, and so on. Each is held by its directory in /proc, so that a later process with
    /// the same number is not taken for it.
    #[derive(Debug)]
    pub struct Family {
        parent: Process,
        others: Vec<Process>,
    }

    impl Family {
        pub fn of(pid: i32) -> ProcResult<Self> {
            Ok(Family { parent: Process::new(pid)?, others: Vec::new() })
        }

        /// What they have used; `None` if the parent has ended.
        pub fn look(&mut self, precision: Precision) -> Option<Usage> {
            if precision != Precision::Rough {
                self.others.clear();
                descendants(&self.parent, &mut self.others);
            }
            let others = self.others.iter().filter_map(|process| usage(process, precision));
            let others: Vec<_> = others.collect();
            let parent = usage(&self.parent, precision)?;
            Some(others.iter().fold(parent, |sum, usage| Usage {
                cpu: sum.cpu + usage.cpu,
                resident: sum.resident.saturating_add(usage.resident),
            }))
        }

        /// If none of them has the socket that these routes lead to, says so. Where that cannot be known, such as for
        /// another machine, another network namespace, or another user's processes, they are believed to be the server.
        pub fn explain_stranger(&self, routes: &[Route]) -> Option<String> {
            let own = |process: &Process| {
                process.namespaces().ok()?.0.get(std::ffi::OsStr::new("net")).map(|it| it.identifier)
            };
            if own(&self.parent)? != own(&Process::myself().ok()?)? {
                return None;
            }
            let mut sockets = HashSet::new();
            for route in routes {
                sockets.extend(listening(&route.target)?);
            }
            let mut all = std::iter::once(&self.parent).chain(&self.others);
            if sockets.is_empty() || all.try_fold(false, |found, process| Some(found || has_any(process, &sockets)?))? {
                return None;
            }
            let name = |process: &Process| Some(format!("process {} ({})", process.pid, process.stat().ok()?.comm));
            let theirs = all_processes().ok()?.flatten().filter(|process| has_any(process, &sockets) == Some(true));
            let theirs: Vec<_> = theirs.filter_map(|process| name(&process)).take(3).collect();
            let address = &routes.first()?.target;
            let instead =
                if theirs.is_empty() { "another one does".to_owned() } else { format!("{} does", theirs.join(", ")) };
            Some(format!("{} does not listen on {address}; {instead}", name(&self.parent)?))
        }
    }

    fn descendants(process: &Process, into: &mut Vec<Process>) {
        let Ok(tasks) = process.tasks() else { return };
        for child in tasks.flatten().filter_map(|task| task.children().ok()).flatten() {
            if let Ok(child) = Process::new(child as i32) {
                descendants(&child, into);
                into.push(child);
            }
        }
    }

    fn usage(process: &Process, precision: Precision) -> Option<Usage> {
        let clock = clock_getcpuclockid(Pid::from_raw(process.pid)).ok()?;
        let cpu = Duration::from(clock_gettime(clock).ok()?);
        // Only now is it known that the clock was this process's, and not one's that took its number over.
        let stat = process.stat().ok().filter(|stat| !has_ended(stat))?;
        let rough = stat.rss.saturating_mul(procfs::page_size());
        let counted =
            || process.smaps_rollup().ok()?.memory_map_rollup.iter().next()?.extension.map.get("Rss").copied();
        let resident = match precision {
            Precision::Exact => counted().unwrap_or(rough),
            _ => rough,
        };
        // What children had used that have been waited for is counted in ticks.
        let ticks = (stat.cutime + stat.cstime).max(0) as f64 / procfs::ticks_per_second() as f64;
        Some(Usage { cpu: cpu + Duration::try_from_secs_f64(ticks).unwrap_or_default(), resident })
    }

    fn has_ended(stat: &Stat) -> bool {
        matches!(stat.state, 'Z' | 'X' | 'x')
    }

    /// The inodes of the sockets on this machine that take what is sent to an address; `None` if it is not this machine's
    /// or cannot be known.
    fn listening(target: &Endpoint) -> Option<Vec<u64>> {
        let takes = |local: SocketAddr, target: &SocketAddr| {
            let ip = local.ip().to_canonical();
            // A socket on [::] may take IPv4 too.
            local.port() == target.port()
                && (ip == target.ip() || (ip.is_unspecified() && (ip.is_ipv6() || target.is_ipv4())))
        };
        let is_here = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
        Some(match target {
            Endpoint::Tcp(target) if is_here(target.ip()) => {
                let all = net::tcp().ok()?.into_iter().chain(net::tcp6().unwrap_or_default());
                let listening =
                    all.filter(|entry| entry.state == TcpState::Listen && takes(entry.local_address, target));
                listening.map(|entry| entry.inode).collect()
            }
            Endpoint::Udp(target) if is_here(target.ip()) => {
                let all = net::udp().ok()?.into_iter().chain(net::udp6().unwrap_or_default());
                all.filter(|entry| takes(entry.local_address, target)).map(|entry| entry.inode).collect()
            }
            // A server may have called it by another path, and a chroot may too: its own name is what they have in common.
            Endpoint::Unix(target) => {
                let name = target.file_name()?;
                let is_it = |entry: &UnixNetEntry| entry.path.as_deref().and_then(Path::file_name) == Some(name);
                net::unix().ok()?.into_iter().filter(is_it).map(|entry| entry.inode).collect()
            }
            _ => return None,
        })
    }

    /// Whether a process has one of these sockets; `None` if its descriptors cannot be seen.
    fn has_any(process: &Process, sockets: &HashSet<u64>) -> Option<bool> {
        let descriptors = process.fd().ok()?;
        Some(descriptors.flatten().any(|it| matches!(it.target, FDTarget::Socket(inode) if sockets.contains(&inode))))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread;

    use super::*;
    use rustix::time::{ClockId, clock_gettime};

    fn own_time() -> Duration {
        clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
    }

    #[test]
    fn threads_that_have_ended_are_in_the_time() {
        let mut watch = Watch::new(std::process::id() as i32, &[]).unwrap();
        let spin = || {
            let began = clock_gettime(ClockId::ThreadCPUTime).tv_nsec;
            while (clock_gettime(ClockId::ThreadCPUTime).tv_nsec - began).abs() < 30_000_000 {}
        };
        let before = watch.look(Precision::Rough).cpu;
        thread::spawn(spin).join().unwrap();
        let (lower, used, upper) = (own_time(), watch.look(Precision::Rough).cpu, own_time());
        assert!(used >= before + Duration::from_millis(29), "{before:?} {used:?}");
        // Children of other tests may be in it too, in ticks.
        assert!(lower <= used && used <= upper + Duration::from_secs(60), "{lower:?} {used:?} {upper:?}");
    }

    #[test]
    fn children_are_watched_and_an_end_is_noticed() {
        // A shell that waits for a child that spins.
        let mut shell =
            Command::new("sh").args(["-c", "(while :; do :; done) & wait"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut watch = Watch::new(shell.id() as i32, &[]).unwrap();
        let before = watch.look(Precision::Exact);
        while watch.look(Precision::Exact).cpu < before.cpu + Duration::from_millis(50) {}
        assert!(watch.peak > 0 && !watch.ended);
        let child =
            procfs::process::Process::new(shell.id() as i32).unwrap().task_main_thread().unwrap().children().unwrap();
        shell.kill().unwrap();
        for child in child {
            let child = rustix::process::Pid::from_raw(child as i32).unwrap();
            rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
        }
        // Nobody has waited for it yet: it is a zombie.
        while !watch.ended {
            watch.look(Precision::Rough);
        }
        let error = Watch::new(shell.id() as i32, &[]).unwrap_err().to_string();
        assert!(error.contains("it has ended"), "{error}");
        shell.wait().unwrap();
        let error = format!("{:#}", Watch::new(shell.id() as i32, &[]).unwrap_err());
        assert!(error.contains(&format!("cannot watch process {}", shell.id())), "{error}");
    }
}
