//! Where echoloop stands: it and its peers, driven by `echoloop bench` over loopback, all bytes verified.
//!
//! Each server runs as a process of its own. In each round every server has its turn, in an order that rotates, so that
//! what disturbs the machine disturbs all of them alike, and ratios are taken within a round. Server and load are
//! pinned to a core each where there are two.
//!
//! This module runs servers and load; `results` is what comes of it. It does not know how a server works.

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("This benchmark pins processes and reads their memory as Linux does, and runs there alone.");
}

#[cfg(target_os = "linux")]
mod blocking;
#[cfg(target_os = "linux")]
mod chart;
#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
mod io_uring;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod tokio_tasks;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    run::main()
}
