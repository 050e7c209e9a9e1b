//! Tells the program which commit, target and compiler it is built from, for `echoloop --version`, the files of runs and
//! `/metrics`. Where that cannot be known it is left out: no build fails for want of it, and nothing is asked of the network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ECHOLOOP_COMMIT");
    let given = env::var("ECHOLOOP_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| packaged(&root)).or_else(|| checked_out(&root));
    let rustc = env::var_os("RUSTC").and_then(|rustc| output(Command::new(rustc).arg("--version")));
    for (name, value) in [("COMMIT", commit), ("TARGET", env::var("TARGET").ok()), ("RUSTC", rustc)] {
        if let Some(value) = value {
            // cargo run sets them for the program, too: so they are not called as options in the environment are.
            println!("cargo::rustc-env=BUILT_FROM_{name}={value}");
        }
    }
}

/// The commit that `cargo package` has noted.
fn packaged(root: &Path) -> Option<String> {
    let note = root.join(".cargo_vcs_info.json");
    let text = fs::read_to_string(&note).ok()?;
    println!("cargo::rerun-if-changed={}", note.display());
    let commit = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    commit.get(..12).map(str::to_owned)
}

/// The commit that is checked out, if this directory is a checkout: somebody else's repository around it does not count.
fn checked_out(root: &Path) -> Option<String> {
    if !root.join(".git").exists() {
        return None;
    }
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        // As set for a hook, these may be about another repository.
        let command = command.args(args).current_dir(root).env_remove("GIT_DIR").env_remove("GIT_WORK_TREE");
        output(command)
    };
    let path = |name: &str| git(&["rev-parse", "--git-path", name]).map(|path| root.join(path));
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // Built again when HEAD moves. Cargo takes what is not there for changed: so only what is.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    let mut watched = vec![path("HEAD"), path("packed-refs"), path("logs/HEAD")];
    watched.push(match branch.and_then(|branch| path(&branch)).filter(|branch| branch.exists()) {
        Some(branch) => Some(branch),
        None => path("refs/heads"),
    });
    for path in watched.into_iter().flatten().filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Some(commit)
}

/// The one line that a command prints, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim();
    (!line.is_empty() && !line.contains('\n')).then(|| line.to_owned())
}
