//! A million connections at once on one machine, each of which echoes verified bytes while all are open.
//!
//! A process may have only so many open files, and so there are as many servers as it takes, sharing one port
//! (`--reuse-port`), and as many generators, dialling from addresses of their own. All is looked at first: memory, limits,
//! ports. Where they are smaller than a million needs, it becomes as many as they allow, and that is said.
//!
//! `cargo bench --bench million`. Everything stays on the loopback, and ends with this process.

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("This benchmark reads memory and limits as Linux tells them, and runs there alone.");
}

#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod run;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    run::main()
}
