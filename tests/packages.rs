//! What `deploy/package` makes is whole, and runs.

#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{ECHOLOOP, Server, ping};

/// What each package has, beside what it says of itself. A manual page is there for each command.
const FILES: [&str; 10] = [
    "usr/bin/echoloop",
    "usr/lib/systemd/system/echoloop@.service",
    "usr/lib/systemd/system/echoloop-activated.service",
    "usr/lib/systemd/system/echoloop.socket",
    "usr/lib/systemd/system/echoloop.target",
    "usr/share/bash-completion/completions/echoloop",
    "usr/share/fish/vendor_completions.d/echoloop.fish",
    "usr/share/doc/echoloop/README.md",
    "usr/share/doc/echoloop/examples/echoloop-rules.yaml",
    "usr/share/doc/echoloop/examples/echoloop.json",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}", told(&output.stdout), told(&output.stderr));
    output
}

/// Lines that a command prints.
#[track_caller]
fn lines(command: &mut Command) -> Vec<String> {
    String::from_utf8(run(command).stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The one file with this ending that was made.
fn made(ending: &str) -> PathBuf {
    let files = fs::read_dir(root().join("target/packages")).unwrap().map(|entry| entry.unwrap().path());
    let mut those = files.filter(|path| path.to_string_lossy().ends_with(ending));
    let one = those.next().unwrap_or_else(|| panic!("no {ending} was made"));
    assert!(those.next().is_none(), "one {ending}");
    one
}

/// The names of the manual pages of the program that is packaged.
fn manual_pages() -> BTreeSet<String> {
    let directory = tempfile::tempdir().unwrap();
    run(Command::new(ECHOLOOP).arg("man").arg("--dir").arg(directory.path()));
    let pages = fs::read_dir(directory.path()).unwrap();
    pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect()
}

/// Checks what was unpacked into a system's root directory, and runs the program.
fn check_tree(tree: &Path, completions_of_zsh: &str) {
    for file in FILES.into_iter().chain([completions_of_zsh]) {
        let path = tree.join(file);
        assert!(fs::metadata(&path).is_ok_and(|it| it.len() > 0), "{file} is missing");
    }
    let pages = fs::read_dir(tree.join("usr/share/man/man1")).unwrap();
    let pages: BTreeSet<_> =
        pages.map(|page| page.unwrap().file_name().into_string().unwrap().trim_end_matches(".gz").to_owned()).collect();
    assert_eq!(pages, manual_pages());
    for unit in ["echoloop@.service", "echoloop-activated.service", "echoloop.socket", "echoloop.target"] {
        let [packaged, ours] = [tree.join("usr/lib/systemd/system").join(unit), root().join("deploy").join(unit)];
        assert_eq!(fs::read_to_string(packaged).unwrap(), fs::read_to_string(ours).unwrap());
    }
    // The units find it: as they name it, it is in a directory where systemd looks.
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .env("SYSTEMD_UNIT_PATH", format!("{}:", tree.join("usr/lib/systemd/system").display()))
        .args(["echoloop@1.service", "echoloop-activated.service", "echoloop.socket", "echoloop.target"])
        .output()
        .expect("systemd-analyze is installed");
    let said = String::from_utf8_lossy(&verify.stderr);
    let about = said.lines().filter(|line| line.contains("echoloop"));
    // Here it is not installed, so that systemd does not find it, and nothing else is wrong.
    let wrong: Vec<_> = about.filter(|line| !line.contains("Command echoloop is not executable")).collect();
    assert_eq!(wrong, [""; 0]);
    let mut command = Command::new(tree.join("usr/bin/echoloop"));
    command.args(["serve", "127.0.0.1:0"]);
    let mut server = Server::spawn(command, 1);
    ping(&mut server.connect(), b"what was packaged runs");
    server.stop();
}

/// Makes packages of these formats. The guard keeps the other tests from making others in their place.
fn package(formats: &[&str]) -> MutexGuard<'static, ()> {
    static MAKING: Mutex<()> = Mutex::new(());
    let guard = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // What these tests were built with is there. Without tests there are fewer features of dependencies, and nearly all
    // of them would be built once more.
    let built = if Path::new(ECHOLOOP).starts_with(root().join("target/debug")) { "yes" } else { "no" };
    run(Command::new(root().join("deploy/package")).env("BUILT", built).arg("dev").args(formats));
    let packages = root().join("target/packages");
    let sums = run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&packages));
    assert_eq!(String::from_utf8(sums.stdout).unwrap().matches(": OK").count(), formats.len());
    guard
}

#[test]
#[ignore = "needs cargo-deb, dpkg-deb, lintian and systemd-analyze"]
fn deb_is_whole_and_runs() {
    let _guard = package(&["deb"]);
    let deb = made(".deb");
    let tree = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(tree.path()));
    check_tree(tree.path(), "usr/share/zsh/vendor-completions/_echoloop");
    let field = |name: &str| lines(Command::new("dpkg-deb").arg("-f").arg(&deb).arg(name)).concat();
    assert!(field("Version").starts_with(env!("CARGO_PKG_VERSION")), "{}", field("Version"));
    assert!(field("Depends").contains("libc6 (>="), "{}", field("Depends"));
    let control = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("-e").arg(&deb).arg(control.path()));
    assert!(["prerm", "postinst"].iter().all(|script| control.path().join(script).exists()));
    run(Command::new("lintian").args(["--fail-on", "error", "--allow-root"]).arg(&deb));
}

#[test]
#[ignore = "needs cargo-generate-rpm, rpm and systemd-analyze"]
fn rpm_is_whole_and_runs() {
    let _guard = package(&["rpm"]);
    let rpm = made(".rpm");
    let tree = tempfile::tempdir().unwrap();
    let unpack = format!("rpm2archive - < '{}' | tar -xz", rpm.display());
    run(Command::new("sh").args(["-c", &unpack]).current_dir(tree.path()));
    check_tree(tree.path(), "usr/share/zsh/site-functions/_echoloop");
    let query = |what: &str| lines(Command::new("rpm").args(["-qp", "--nosignature", what]).arg(&rpm));
    assert!(query("--requires").iter().any(|it| it.starts_with("libc.so.6")), "{:?}", query("--requires"));
    let scripts = query("--scripts").join("\n");
    assert!(scripts.contains("daemon-reload") && scripts.contains("systemctl disable echoloop@.service"), "{scripts}");
}

#[test]
fn archive_is_whole_and_runs() {
    let _guard = package(&["tar"]);
    let tree = tempfile::tempdir().unwrap();
    run(Command::new("tar").arg("-xzf").arg(made(".tar.gz")).arg("-C").arg(tree.path()));
    let inside = fs::read_dir(tree.path()).unwrap().next().unwrap().unwrap();
    let name = format!("echoloop-{}-", env!("CARGO_PKG_VERSION"));
    assert!(inside.file_name().to_string_lossy().starts_with(&name));
    for file in ["share/man/echoloop-serve.1", "share/_echoloop", "echoloop@.service", "LICENSE"] {
        assert!(inside.path().join(file).exists(), "{file} is missing");
    }
    let said = lines(Command::new(inside.path().join("echoloop")).arg("--version"));
    assert_eq!(said, lines(Command::new(ECHOLOOP).arg("--version")));
}

#[test]
fn removal_alone_disables_units() {
    let directory = tempfile::tempdir().unwrap();
    for (script, arguments, expected) in [
        ("postinst", "configure", ["daemon-reload"].as_slice()),
        ("prerm", "upgrade 0.2.0", &[]),
        ("prerm", "1", &[]),
        ("prerm", "remove", &["disable", "stop"]),
        ("prerm", "0", &["disable", "stop"]),
    ] {
        let text = fs::read_to_string(root().join("deploy/packages").join(script)).unwrap();
        let told = directory.path().join("told");
        fs::write(&told, "").unwrap();
        // As where systemd runs, with a systemctl that only writes down what it is asked.
        let systemctl = format!("systemctl() {{ echo \"$1\" >> {}; }}\n", told.display());
        let text = format!("{systemctl}{}", text.replace("/run/systemd/system", "/"));
        run(Command::new("sh").args(["-c", &text, script]).args(arguments.split(' ')));
        let asked = fs::read_to_string(&told).unwrap();
        assert_eq!(asked.lines().collect::<Vec<_>>(), expected, "{script} {arguments}");
    }
}
