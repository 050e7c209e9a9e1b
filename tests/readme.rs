//! The README says what is: its session runs as written, and it knows every option.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use common::ECHOLOOP;

const README: &str = include_str!("../README.md");

#[test]
fn the_session_runs_as_written() {
    let block = README.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    // The default port may be taken on this machine, so the session's commands are given another address.
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("echoloop");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let exec = format!("#!/bin/sh\ncommand=$1; shift; exec {ECHOLOOP} $command -q {address} \"$@\"\n");
    fs::write(&program, exec).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o700)).unwrap();
    let mut script = "PATH=$PWD:$PATH\ntrap 'kill $!' EXIT\n".to_owned();
    let mut expected = String::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => {
                script.push_str(command);
                script.push('\n');
                if command.ends_with('&') {
                    // Nobody types the next line before the server is up.
                    script.push_str("until echoloop connect < /dev/null 2> /dev/null; do sleep 0.05; done\n");
                }
            }
            None => expected.push_str(&format!("{line}\n")),
        }
    }
    let output =
        Command::new("timeout").args(["60", "sh", "-c", &script]).current_dir(directory.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected.replace("127.0.0.1:7777", &address));
}

#[test]
fn every_option_is_explained_and_none_that_is_not() {
    let mentioned: BTreeSet<_> = README
        .lines()
        .filter(|line| line.starts_with("| `-"))
        .filter_map(|line| line.split(" | ").next())
        .flat_map(|cell| cell.split(['`', ' ', ',']))
        .filter_map(|word| word.strip_prefix("--"))
        .collect();
    let mut command = echoloop::cli::Cli::command();
    command.build();
    let existing: BTreeSet<_> = command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| argument.get_long())
        .filter(|name| !["help", "version"].contains(name))
        .collect();
    assert_eq!(mentioned, existing);
}

#[test]
fn what_it_points_to_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let headings: Vec<_> = README
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|heading| heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"))
        .collect();
    for link in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        match link.strip_prefix('#') {
            Some(anchor) => assert!(headings.iter().any(|heading| heading == anchor), "{link}"),
            None => assert!(link.starts_with("https://") || root.join(link).exists(), "{link}"),
        }
    }
}
