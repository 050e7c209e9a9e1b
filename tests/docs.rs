//! The documents say what is: options are those of the program, links lead somewhere, and the tests that the facts name
//! are there.
//!
//! The tables of options in `docs/` are written from the command line's own definition by
//! `ECHOLOOP_UPDATE=1 cargo test --test docs`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command, CommandFactory};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const REFRESH: &str = "ECHOLOOP_UPDATE=1 cargo test --test docs";

/// What stands around a table: `<!-- options of COMMAND begin ... -->`, and `<!-- options of COMMAND end -->`.
fn markers(command: &str) -> (String, String) {
    let what = format!("options of {command}");
    (format!("<!-- {what} begin, written by: {REFRESH} -->\n"), format!("<!-- {what} end -->\n"))
}

fn pages() -> Vec<PathBuf> {
    let folders = ["docs", "docs/labs"].map(|name| fs::read_dir(Path::new(ROOT).join(name)).unwrap());
    let mut pages: Vec<_> = folders.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| Path::new(ROOT).join(name)));
    pages.sort();
    pages
}

/// The program, and its commands, with the name of each: what its table is called.
fn commands() -> Vec<(String, Command)> {
    let mut program = echoloop::cli::Cli::command();
    program.build();
    let mut commands: Vec<_> = program.get_subcommands().map(|sub| (sub.get_name().to_owned(), sub.clone())).collect();
    commands.retain(|(name, command)| name != "help" && !command.is_hide_set());
    commands.push(("echoloop".to_owned(), program));
    commands
}

/// A table of the options of one command: those that all commands have are in the program's alone.
fn table(name: &str, command: &Command) -> String {
    let shown = |arg: &&Arg| {
        let long = arg.get_long();
        !arg.is_hide_set()
            && !arg.is_positional()
            && !long.is_some_and(|long| ["help", "version"].contains(&long))
            && (name == "echoloop" || !arg.is_global_set())
    };
    let mut text = String::new();
    let mut heading = None;
    let args: Vec<_> = command.get_arguments().filter(shown).collect();
    if args.is_empty() {
        return text;
    }
    let mut headings: Vec<Option<&str>> = args.iter().map(|arg| arg.get_help_heading()).collect();
    headings.sort_by_key(|heading| heading.is_some()); // what has no heading comes first; the sort is stable
    headings.dedup();
    let mut seen = BTreeSet::new();
    headings.retain(|heading| seen.insert(*heading));
    for group in headings {
        if heading != Some(group) {
            heading = Some(group);
            if let Some(title) = group {
                writeln!(text, "\n**{title}**").unwrap();
            }
            text.push_str("\n| option | meaning |\n| --- | --- |\n");
        }
        for arg in args.iter().filter(|arg| arg.get_help_heading() == group) {
            writeln!(text, "| {} | {} |", spelling(arg), meaning(arg)).unwrap();
        }
    }
    text.push('\n');
    text
}

fn spelling(arg: &Arg) -> String {
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let is_optional = arg.get_num_args().is_some_and(|number| number.min_values() == 0);
    let shown = |name: &str| if is_optional { format!("[={name}]") } else { format!(" {name}") };
    let value = arg.get_value_names().filter(|_| takes_value).map(|names| shown(&names[0])).unwrap_or_default();
    let mut names: Vec<String> = arg.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
    names.extend(arg.get_long().map(|long| format!("`--{long}{value}`")));
    names.join(", ").replace('|', "\\|")
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(StyledStr::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let values: Vec<_> = arg.get_possible_values();
    let values: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    if takes_value && !values.is_empty() {
        write!(text, " (one of {})", values.join(", ")).unwrap();
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_value && !defaults.is_empty() {
        write!(text, " [default: {}]", defaults.join(", ")).unwrap();
    }
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}

#[test]
fn option_tables_are_those_of_the_program() {
    let update = env::var_os("ECHOLOOP_UPDATE").is_some();
    let mut stale = Vec::new();
    let mut missing: BTreeSet<String> = BTreeSet::new();
    let commands = commands();
    for (name, command) in &commands {
        if !table(name, command).is_empty() {
            missing.insert(name.clone());
        }
    }
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let mut new = text.clone();
        for (name, command) in &commands {
            let (begin, end) = markers(name);
            let Some((before, rest)) = new.split_once(&begin) else { continue };
            let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{}: no {end}", page.display()));
            new = format!("{before}{begin}{}{end}{after}", table(name, command));
            missing.remove(name);
        }
        if new != text {
            stale.push(page.display().to_string());
            if update {
                fs::write(&page, &new).unwrap();
            }
        }
    }
    let (begin, end) = markers("COMMAND");
    assert!(missing.is_empty(), "no page in docs/ has a table of the options of {missing:?}. Put there:\n{begin}{end}");
    assert!(update || stale.is_empty(), "options are not as the program has them in {stale:?}. Run: {REFRESH}");
}

#[test]
fn links_in_documents_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(path.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let target = fs::read_to_string(&path).unwrap();
                assert!(anchors(&target).contains(anchor), "{}: {link}", page.display());
            }
        }
    }
}

#[test]
fn files_that_documents_name_exist() {
    const DIRECTORIES: [&str; 6] = ["src/", "tests/", "docs/", "deploy/", "benches/", "examples/"];
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for code in text.split('`').skip(1).step_by(2).filter(|code| !code.contains([' ', '*', '{'])) {
            let path = code.split(':').next().unwrap();
            if DIRECTORIES.iter().any(|directory| path.starts_with(directory)) {
                assert!(Path::new(ROOT).join(path).exists(), "{}: {code}", page.display());
            }
        }
    }
}

/// The links of a page that stay within the project.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|link| !link.starts_with("https://") && !link.starts_with("http://"))
}

/// The anchors that headings make, as GitHub does.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings =
        page.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// A row of the table of facts names its test as `cargo test` takes it: `--lib MODULE::tests::NAME` or
/// `--test FILE NAME`.
#[test]
fn facts_name_tests_that_exist() {
    let tour = fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let rows: Vec<_> =
        tour.lines().filter(|line| line.starts_with("//! | ") && !line.contains("| ---")).skip(1).collect();
    assert!(rows.len() >= 21, "{} facts", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_start_matches("//! | ").trim_end_matches(" |").split(" | ").collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(cells[2].contains("[`"), "there is no link in {row}");
        let tests: Vec<_> = cells[3].split('`').filter(|text| text.starts_with("--")).collect();
        assert!(!tests.is_empty(), "no test is named in {row}");
        for test in tests {
            assert!(exists(test), "there is no test {test}, which src/lib.rs names in {row}");
        }
    }
}

fn exists(test: &str) -> bool {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let (text, name) = match test.split(' ').collect::<Vec<_>>()[..] {
        ["--test", file, name] => (read(&Path::new(ROOT).join(format!("tests/{file}.rs"))), name),
        ["--lib", path] => {
            let (module, name) = path.rsplit_once("::").unwrap();
            let module = Path::new(ROOT).join("src").join(module.replace("::", "/"));
            let parent = module.parent().unwrap();
            // `mod tests` is within its parent's file or in one of its own: `#[path]` keeps it where the parent is.
            let own = [module.with_extension("rs"), parent.with_extension("rs"), parent.join("mod.rs")]
                .map(|path| read(&path));
            let beside = own[1].contains("#[path = \"tests.rs\"]").then(|| read(&parent.with_file_name("tests.rs")));
            (own.concat() + &beside.unwrap_or_default(), name)
        }
        _ => panic!("{test:?} is neither --lib PATH nor --test FILE NAME"),
    };
    let declared = format!("{name}("); // a generated test has arguments
    text.split("#[test]")
        .skip(1)
        .any(|item| item.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&declared)))
}

/// The properties, and the words among the values, of a definition in the schema of runs.
fn words_of(schema: &serde_json::Value, definition: &str) -> Vec<String> {
    let definition = &schema["$defs"][definition];
    let properties = definition["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
    let values = definition["oneOf"].as_array().into_iter().flatten().filter_map(|value| value["const"].as_str());
    properties.chain(values.map(str::to_owned)).collect()
}

#[test]
fn glossary_has_the_words_of_reports() {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_echoloop")).args(["report", "--schema"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let glossary = fs::read_to_string(Path::new(ROOT).join("docs/glossary.md")).unwrap();
    for definition in ["Outcomes", "NeverSent", "Datagrams", "Cut", "Limit"] {
        let words = words_of(&schema, definition);
        assert!(!words.is_empty(), "{definition} is not in the schema");
        for word in words {
            assert!(glossary.contains(&format!("`{word}`")), "docs/glossary.md lacks {word}, of {definition}");
        }
    }
    let rows = glossary.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1));
    let words: Vec<_> = rows.filter_map(|cell| cell.strip_prefix('`')?.strip_suffix('`')).collect();
    assert!(words.len() > 15);
    for word in words {
        assert!(
            text.contains(&format!("\"{word}\"")),
            "the files of runs have no {word}, which docs/glossary.md tells of"
        );
    }
}
