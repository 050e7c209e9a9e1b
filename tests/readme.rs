//! The README's session runs as written.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::ECHOLOOP;

const README: &str = include_str!("../README.md");

#[test]
fn session_of_the_readme_runs_as_written() {
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
