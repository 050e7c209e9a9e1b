//! The program: the command line is parsed, the log set up, the command run, and its outcome becomes an exit code.

use std::process::ExitCode;
use std::slice;
use std::time::{Duration, Instant};

use echoloop::bench::report::{self, Outputs};
use echoloop::bench::{self, Run};
use echoloop::cli::{Bench, Cli, Command, Report};
use echoloop::reactor::socket::Socket;
use echoloop::serve::{Ending, Server, StreamService};
use echoloop::{check, cli, connect, limits, logging, signals, stdio};
use log::{error, info, warn};

/// How long the program's end waits for the reader of its log.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    stdio::prepare();
    let cli = Cli::from_command_line();
    logging::init(cli.verbosity(), cli.log_format());
    if matches!(cli.command, Command::Report(_) | Command::Completions { .. } | Command::Man(_)) {
        signals::end_process_one();
    }
    for variable in cli.unknown_variables() {
        warn!(
            "the environment has {variable}, which is no option of any command: it is ignored; `env -u {variable}` removes it"
        );
    }
    let outcome = match cli.command {
        Command::Serve(config) => serve(&config),
        Command::Connect(flags) => connect(&flags),
        Command::Bench(flags) => bench(*flags),
        Command::Report(flags) => report(&flags),
        Command::Check(config) => check::run(&config).map(ExitCode::from),
        Command::Completions { shell } => cli::print_completions(shell).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::Man(flags) => flags.print().map(|()| ExitCode::SUCCESS),
    };
    let code = outcome.unwrap_or_else(|error| fail(&limits::explain(error)));
    logging::finish(Instant::now() + LOG_TIMEOUT);
    code
}

fn fail(error: &anyhow::Error) -> ExitCode {
    logging::fail(error);
    ExitCode::FAILURE
}

fn serve(config: &echoloop::serve::Config) -> anyhow::Result<ExitCode> {
    match config.faults.is_some() {
        false => serve_with(Server::bind(config)?),
        true => serve_with(Server::bind_faulty(config)?),
    }
}

fn serve_with<P: StreamService<Socket>>(mut server: Server<P>) -> anyhow::Result<ExitCode> {
    server.announce();
    let ending = server.run()?;
    info!("{}", server.summary());
    let until = server.finish_by();
    drop(server); // with its files, whether or not somebody reads the rest of the log
    logging::finish(until);
    Ok(match ending {
        Ending::Stopped => ExitCode::SUCCESS,
        Ending::Killed(signal) => ExitCode::from(128 + u8::try_from(signal)?),
    })
}

fn connect(config: &connect::Config) -> anyhow::Result<ExitCode> {
    Ok(match connect::run(config)? {
        connect::Ending::Finished => ExitCode::SUCCESS,
        connect::Ending::Signal(signal) => ExitCode::from(128 + u8::try_from(signal)?),
    })
}

fn bench(flags: Bench) -> anyhow::Result<ExitCode> {
    let fail_if = flags.fail_if().to_vec();
    // A named pipe is opened only when somebody reads it.
    let (mut run, files) = bench::run(flags.config(), || flags.outputs().open())?;
    run.judge(&fail_if)?;
    let failures = report::deliver(&report::text(&run)?, slice::from_ref(&run), files);
    for verdict in run.criteria.iter().filter(|verdict| verdict.holds) {
        error!("--fail-if {}: {}", verdict.criterion, verdict.figure);
    }
    Ok(failures.iter().fold(ExitCode::from(run.exit_code()), |_, error| fail(error)))
}

fn report(flags: &Report) -> anyhow::Result<ExitCode> {
    if flags.schema {
        stdio::print(report::schema())?;
        return Ok(ExitCode::SUCCESS);
    }
    let files = Outputs { json: flags.json.clone(), html: flags.html.clone(), ..Outputs::default() }.open()?;
    let runs = flags.files.iter().map(|path| Run::read_all(path)).collect::<anyhow::Result<Vec<_>>>()?.concat();
    let runs = match flags.merge {
        true => vec![bench::merge(&runs, flags.name.as_deref())?],
        false => runs.into_iter().map(|(_, run)| run).collect(),
    };
    let text = if let [run] = &runs[..] { report::text(run)? } else { report::comparison(&runs)? };
    let failures = report::deliver(&text, &runs, files);
    Ok(failures.iter().fold(ExitCode::SUCCESS, |_, error| fail(error)))
}
