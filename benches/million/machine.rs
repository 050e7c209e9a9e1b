//! What the machine has, and what it allows.

use std::fs;

use anyhow::{Context, ensure};
use procfs::{Current, Meminfo};

/// Bytes of memory that a connection is taken to need, both of its ends, user and kernel. Measured: some 10,500.
const BYTES: u64 = 11_500;

/// Memory that is left for everything else.
const SPARE_MEMORY: u64 = 2 << 30;

/// Open files that are left for everything else on the machine, and for a process's own.
const SPARE_FILES: u64 = 20_000;
const OWN_FILES: u64 = 200;

/// How full servers are at most on average, because the kernel's spread over them is not even. Its standard deviation is
/// about the root of the average, below 1 % for the least limits there are.
const FILL: f64 = 0.9;

/// Figures of the machine at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Bytes that could be had.
    pub available: u64,
    /// Bytes of the kernel's slabs.
    pub slab: u64,
    /// Bytes of TCP's buffers.
    pub tcp: u64,
    /// TCP sockets.
    pub sockets: u64,
}

impl Memory {
    pub fn now() -> anyhow::Result<Self> {
        let memory = Meminfo::current()?;
        let sockets = fs::read_to_string("/proc/net/sockstat")?;
        let tcp = sockets.lines().find(|line| line.starts_with("TCP:")).context("/proc/net/sockstat has no TCP")?;
        let words: Vec<_> = tcp.split_whitespace().collect();
        let figure = |name: &str| {
            let value = words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)?.parse().ok());
            value.with_context(|| format!("/proc/net/sockstat does not tell {name}"))
        };
        Ok(Memory {
            available: memory.mem_available.context("/proc/meminfo does not tell what is available")?,
            slab: memory.slab,
            tcp: figure("mem")? * procfs::page_size(),
            sockets: figure("inuse")?,
        })
    }
}

/// How many connections there are to be, and how they are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub connections: u64,
    pub servers: u64,
    pub generators: u64,
    /// Connections of each generator; the last may have fewer.
    pub each: u64,
}

/// Limits that bound the number of connections: what each is called, and how many it allows.
pub fn limits(open_files: u64) -> anyhow::Result<Vec<(String, u64)>> {
    let number = |path: &str| -> anyhow::Result<u64> {
        let text = fs::read_to_string(path)?;
        text.trim().parse().with_context(|| format!("{path} is {text:?}"))
    };
    let used = fs::read_to_string("/proc/sys/fs/file-nr")?;
    let used: u64 = used.split_whitespace().next().unwrap_or_default().parse()?;
    let files = number("/proc/sys/fs/file-max")?;
    let processes = number("/proc/sys/kernel/pid_max")? / 2;
    let memory = Memory::now()?.available;
    Ok(vec![
        (
            format!("memory ({} MiB available, {BYTES} bytes a connection)", memory >> 20),
            memory.saturating_sub(SPARE_MEMORY) / BYTES,
        ),
        (format!("fs.file-max ({files}, {used} in use)"), files.saturating_sub(used + SPARE_FILES) / 2),
        (
            format!("kernel.pid_max, and {open_files} open files a process"),
            processes / 2 * open_files.saturating_sub(OWN_FILES),
        ),
    ])
}

/// Shares `connections` out.
pub fn plan(connections: u64, open_files: u64) -> anyhow::Result<Plan> {
    let room = open_files.saturating_sub(OWN_FILES);
    ensure!(room >= 100, "with {open_files} open files a process there is room for nothing: raise it (ulimit -Hn)");
    let generators = connections.div_ceil(room).max(1);
    let servers = (connections as f64 / (room as f64 * FILL)).ceil().max(1.0) as u64;
    Ok(Plan { connections, servers, generators, each: connections.div_ceil(generators) })
}
