//! The program: the command line is parsed, the log set up, the command run, and its outcome becomes an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use echoloop::cli::{Cli, Command};
use echoloop::serve::{Ending, Server};
use echoloop::{connect, logging};
use log::{info, warn};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(cli.verbosity());
    let outcome = match cli.command {
        Command::Serve(flags) => serve(&(*flags).into()),
        Command::Connect(flags) => connect::run(&flags.into()).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "echoloop: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(config: &echoloop::serve::Config) -> anyhow::Result<ExitCode> {
    let mut server = Server::bind(config)?;
    let mut out = io::stdout().lock();
    for address in server.local_addrs() {
        if let Err(error) = writeln!(out, "listening on {address}").and_then(|()| out.flush()) {
            warn!("cannot write to standard output: {error}; listening on {address}");
        }
    }
    drop(out);
    let ending = server.run()?;
    info!("{}", server.summary());
    Ok(match ending {
        Ending::Stopped => ExitCode::SUCCESS,
        Ending::Killed(signal) => ExitCode::from(128 + u8::try_from(signal)?),
    })
}
